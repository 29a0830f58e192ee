"""What a run recorded, as pictures."""
