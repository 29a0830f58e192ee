"""Text from tokens one at a time."""

import codecs


class TextStream:
    """Shows each character as soon as all its bytes are there, and never a part of it."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token):
        """The next token -> the characters that it completes; "\ufffd" for bytes that can be part
        of none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self):
        """-> "\ufffd" if the last character is incomplete, else ""."""
        return self._decoder.decode(b"", final=True)
