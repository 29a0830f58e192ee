"""What updates the parameters: schedules, clipping, AdamW, Muon."""
