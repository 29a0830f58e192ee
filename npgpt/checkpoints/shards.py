"""A model in several safetensors files, its shards: an index says which file has which array.

    model.safetensors.index.json        {"weight_map": {"wte.weight": "model-00001-of-...", ...}}
    model-00001-of-00002.safetensors
    model-00002-of-00002.safetensors
"""

import os

from npgpt.checkpoints.mapped import stored_arrays
from npgpt.errors import UserError
from npgpt.reading import read_json

INDEX = "model.safetensors.index.json"


def arrays_in_shards(index):
    """The path of an index -> name -> Stored. Raises UserError unless it and the files agree."""
    files = _weight_map(index)
    found = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not os.path.exists(path):               # unlike path.exists(), for any name
            raise UserError(f"{path} is missing, but {index} lists arrays in it; copy the file "
                            "there too")
        arrays = stored_arrays(path)
        listed = {name for name in files if files[name] == file}
        different = sorted(arrays.keys() ^ listed)
        if different:
            name = different[0]
            has, lists = ("has no", "lists it") if name in listed else ("has", "does not list it")
            raise UserError(f"{path} {has} {name}, but {index} {lists} there; they are of "
                            "different models, so copy all files again")
        found |= arrays
    return found


def _weight_map(index):
    """-> name of an array -> name of its file, a plain one in the directory of the index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index} is damaged: weight_map does not list any array; copy the file "
                        "again")
    for name, file in files.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\:\0"):
            raise UserError(f"{index}: the file of {name} is {file!r}, and must be the name of one "
                            f"in {index.parent}")
    return files
