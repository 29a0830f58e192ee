"""Large texts are encoded once: their token files stay in a directory, under a hash of the texts'
paths, sizes and times of change and of the tokenizer. It may be deleted at any time.
"""

import hashlib
import json
import os
from pathlib import Path

from npgpt.errors import UserError
from npgpt.text.characters import CharTokenizer
from npgpt.text.files import find, signature
from npgpt.text.token_file import FORMAT, encode_files, open_tokens

CHARACTERS = CharTokenizer.kind  # instead of a tokenizer's digest: the characters of the texts


def cached_tokens(name, tokenizer, folder, progress):
    """The texts that a name stands for (see `files.find`) -> TokenFile in the directory `folder`,
    written if it is not there. tokenizer, progress: as for `encode_files`. Raises UserError."""
    paths = find(name)
    sources = [signature(path) for path in paths]
    digest = CHARACTERS if tokenizer is None else tokenizer.digest
    if tokenizer is not None and tokenizer.kind == CHARACTERS:
        found = _existing(_place(folder, paths, sources, CHARACTERS), sources)
        if found and found.tokenizer.digest == digest:       # a run that is resumed
            return found
    target = _place(folder, paths, sources, digest)
    return _existing(target, sources) or encode_files(paths, tokenizer, target, progress)


def existing_tokens(name, folder):
    """-> the TokenFile of these texts in the directory `folder`, encoded as characters; None: there
    is none."""
    paths = find(name)
    sources = [signature(path) for path in paths]
    return _existing(_place(folder, paths, sources, CHARACTERS), sources)


def _place(folder, paths, sources, digest):
    """-> the path of a token file."""
    key = hashlib.sha256(json.dumps([FORMAT, sources, digest]).encode()).hexdigest()[:16]
    stem = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    return Path(folder) / f"{stem}-{key}"


def _existing(target, sources):
    """-> the TokenFile of these sources; None: it is not there, or not usable."""
    if not os.path.lexists(target):
        return None
    try:
        found = open_tokens(target)
    except UserError:
        return None
    return found if found.facts["sources"] == sources else None
