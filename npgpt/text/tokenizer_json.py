"""What tokenizer.json and tokenizer_config.json say about a byte-level BPE."""


MOST_TOKENS = 10**7       # in a vocabulary


def check_tokens(vocab, merges):
    """Raise ValueError if an id is too large for a table of tokens, or unless both halves of every
    merge and the whole are tokens, as the library assumes."""
    for token, i in vocab.items() if isinstance(vocab, dict) else ():
        if not isinstance(i, int) or i >= MOST_TOKENS:
            raise ValueError(f"the token {token!r} has the id {i!r}; ids are below {MOST_TOKENS:,}")
    for merge in merges:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        for token in (first, second, first + second):
            if token not in vocab:
                raise ValueError(f"{token!r} of the merge {first!r}, {second!r} is not a token")


def alphabet():
    """-> 256 characters, which stand for the bytes in tokenizer.json: printable ones for
    themselves, the others for what follows from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def types(step):
    """The types of a step of a tokenizer and of all steps in it."""
    if isinstance(step, list):
        return {kind for part in step for kind in types(part)}
    if not isinstance(step, dict):
        return set()
    return {step.get("type")}.union(*map(types, step.values()))


def finds(step, key):
    """Whether a key is true in a step or in one of those in it."""
    if isinstance(step, list):
        return any(finds(part, key) for part in step)
    return isinstance(step, dict) and (bool(step.get(key))
                                       or any(finds(part, key) for part in step.values()))


def reaches_out(token):
    """Whether an added token contains white space, or depends on what is beside it."""
    return (any(map(str.isspace, token.content)) or token.lstrip or token.rstrip
            or token.single_word)


def named_token(settings, name):
    """The contents of a tokenizer_config.json -> the text of one of its special tokens, such as
    "eos_token"; None: it names none."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
