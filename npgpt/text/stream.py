"""Text from tokens one at a time, as far as it can be shown."""

import codecs
from itertools import groupby


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


class StopTexts:
    """Passes a text on as far as the first stop text in it. What may be the beginning of one is
    held back until that is known."""

    def __init__(self, stops):
        """stops: texts, none of them empty."""
        self._stops = stops
        self._held = ""
        self.found = False       # whether a stop text has come; nothing is passed on after it

    def push(self, text):
        """The next part of the text -> the part that can be shown."""
        return self._pass_on(self._held + text, self._begin)

    def finish(self):
        """-> what has been held back, as the text ends here."""
        return self._pass_on(self._held, len)

    def _pass_on(self, text, begin):
        """begin(text): where a stop text may begin that goes on after the text."""
        if self.found:
            return ""
        complete = min((at for stop in self._stops if (at := text.find(stop)) >= 0),
                       default=len(text))
        shown = min(complete, begin(text))
        self.found = shown == complete < len(text)
        self._held = text[shown:]
        return text[:shown]

    def _begin(self, text):
        return min((at for stop in self._stops for at in range(len(text))
                    if stop.startswith(text[at:])), default=len(text))


class Continuation:
    """The text that continues a prompt, until a token that ends it or a stop text.

    A token can have a tag, such as its probability. Text comes in pairs (characters, tag); a
    character has the tag of the token that completes it.
    """

    def __init__(self, tokenizer, stops=(), ends=None):
        """ends: the tokens that end the text; None: those of the tokenizer."""
        self._ends = tokenizer.ends if ends is None else ends
        self._text, self._stops = TextStream(tokenizer), StopTexts(stops)
        self._tags = []          # of the characters that are held back
        self._tag = None         # of the last token
        self.tokens = 0          # so far, without the one that ends it
        self.has_ended = False
        self.shown = ""          # the text so far

    def push(self, token, tag=None):
        """The next token -> a list of pairs, the text that can be shown; it is empty after the
        end."""
        if self.has_ended:
            return []
        if token in self._ends:
            return self.finish()
        self.tokens += 1
        self._tag = tag
        shown = self._shown(self._text.push(token))
        self.has_ended = self._stops.found
        return shown

    def finish(self):
        """-> a list of pairs, the text that has been held back."""
        if self.has_ended:
            return []
        self.has_ended = True
        return self._shown(self._text.finish()) + self._pairs(self._stops.finish())

    def _shown(self, characters):
        self._tags += [self._tag] * len(characters)
        return self._pairs(self._stops.push(characters))

    def _pairs(self, text):
        self.shown += text
        tags, self._tags = self._tags[:len(text)], self._tags[len(text):]
        return [("".join(character for character, _ in group), tag)
                for tag, group in groupby(zip(text, tags), key=lambda pair: pair[1])]
