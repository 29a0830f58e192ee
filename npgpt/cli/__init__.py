"""Command lines: options with validation, flags generated from them, one-line errors."""
