"""Text from tokens, one at a time."""

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


class Continuation:
    """One generated text: it ends before the end-of-text token, or before the first of some stop
    texts. What may be the beginning of a stop text is held back until that is known."""

    def __init__(self, tokenizer, stops=()):
        self._end, self._stops = tokenizer.end, stops
        self._stream = TextStream(tokenizer)
        self._held = ""
        self.tokens = 0          # so far, without the end-of-text token
        self.has_ended = False

    def push(self, token):
        """The next token -> the text that can be shown now. After the end: ""."""
        if self.has_ended:
            return ""
        if token == self._end:
            return self.finish()
        self.tokens += 1
        return self._show(self._stream.push(token))

    def finish(self):
        """-> the rest of the text."""
        if self.has_ended:
            return ""
        shown = self._show(self._stream.finish())
        shown, self._held = shown + self._held, ""
        self.has_ended = True
        return shown

    def _show(self, text):
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[:min(found)], ""
            self.has_ended = True
            return shown
        keep = max((n for stop in self._stops for n in range(1, len(stop))
                    if self._held.endswith(stop[:n])), default=0)
        at = len(self._held) - keep
        shown, self._held = self._held[:at], self._held[at:]
        return shown
