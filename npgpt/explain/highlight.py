"""Python source split into parts to colour."""

import io
import keyword
import tokenize

KINDS = {tokenize.COMMENT: "comment", tokenize.STRING: "string", tokenize.NUMBER: "number"}


def parts(source):
    """-> (kind, text) pairs; the texts joined are the source. kind: comment, string, number,
    keyword, defined (the name of a function) or ""."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    result, end, previous = [], 0, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = KINDS.get(token.type, "")
            if token.type == tokenize.NAME and keyword.iskeyword(token.string):
                kind = "keyword"
            elif token.type == tokenize.NAME and previous == "def":
                kind = "defined"
            previous = token.string
            if kind:
                first = starts[token.start[0] - 1] + token.start[1]
                result += [("", source[end:first]), (kind, token.string)]
                end = starts[token.end[0] - 1] + token.end[1]
    except (tokenize.TokenError, IndentationError):
        pass                       # the lines are only part of a statement
    result.append(("", source[end:]))
    return [(kind, text) for kind, text in result if text]
