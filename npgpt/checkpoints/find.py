"""Finding the model that an option names: a run, a model directory, one of adapters, a GGUF file,
or a name on Hugging Face."""

import os
from pathlib import Path

from npgpt.checkpoints import hub, models
from npgpt.checkpoints.adapter import is_adapter
from npgpt.checkpoints.hugging_face import find_weights
from npgpt.checkpoints.run import RunDirectory
from npgpt.errors import UserError

LONGEST = 255                             # bytes of a file's name


def find_model(name, option="model"):
    """The value of an option -> the path of a directory with a model or with adapters, or of a GGUF
    file. A run stands for its best checkpoint, and None for the newest run in out/. What is not
    here is downloaded, if it can be a name on Hugging Face. option: for messages. Raises UserError.
    """
    if name is None:
        return RunDirectory.existing(None, option).checkpoint("best")
    if name == "":
        raise UserError(f"`{option}` is empty; it takes the path of a directory")
    name, path = os.fspath(name), Path(name)
    if len(os.fsencode(path.name)) > LONGEST:
        raise UserError(f"there is no directory {name[:60]}...; the name is too long")
    if path.is_file() or (path / models.CONFIG).is_file() or is_adapter(path):
        return path
    if hub.is_name(name):
        return hub.download(name, f"there is no directory {name}; `{option}` takes that of a run "
                            "or of a model")
    directory = RunDirectory(path)
    if path.is_dir() and not directory.holds_a_run() and not directory.metrics.is_file():
        find_weights(path / models.WEIGHTS)            # names a model of another format
    return RunDirectory.existing(path, option).checkpoint("best")
