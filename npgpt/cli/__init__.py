"""Command lines: options that check themselves, flags made from them, errors as one line."""
