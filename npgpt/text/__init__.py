"""Text in, token ids out: tokenizers and datasets."""
