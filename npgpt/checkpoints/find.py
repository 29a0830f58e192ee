"""Finding the model that an option names: a run, a model directory, a GGUF file, or a name on
Hugging Face."""

import os
import re
from pathlib import Path

from npgpt.checkpoints import models
from npgpt.checkpoints.hugging_face import find_weights
from npgpt.checkpoints.run import RunDirectory
from npgpt.errors import UserError

HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"         # OWNER/MODEL
LONGEST = 255                             # bytes of a file's name
LONGEST_REASON = 300                      # characters of a message from elsewhere
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
             "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
             "generation_config.json"]


def find_model(name, option="model"):
    """The value of an option -> the path of a model directory or of a GGUF file. A run stands for
    its best checkpoint, and None for the newest run in out/. What is not here is downloaded, if it
    can be a name on Hugging Face. option: for messages. Raises UserError."""
    if name is None:
        return RunDirectory.existing(None, option).checkpoint("best")
    if name == "":
        raise UserError(f"`{option}` is empty; it takes the path of a directory")
    name, path = os.fspath(name), Path(name)
    if len(os.fsencode(path.name)) > LONGEST:
        raise UserError(f"there is no directory {name[:60]}...; the name is too long")
    if path.is_file() or (path / models.CONFIG).is_file():
        return path
    if re.fullmatch(HUB_NAME, name) and not path.parent.is_dir() and path.suffix != ".gguf":
        return _download(name, option)
    directory = RunDirectory(path)
    if path.is_dir() and not directory.holds_a_run() and not directory.metrics.is_file():
        find_weights(path / models.WEIGHTS)            # names a model of another format
    return RunDirectory.existing(path, option).checkpoint("best")


def _download(name, option):
    """Download a model of Hugging Face, or what is new in it -> the path of its directory."""
    here = f"there is no directory {name}; `{option}` takes that of a run or of a model"
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{here}, or with the package huggingface_hub the name of a model on "
                        "Hugging Face; install it with: pip install 'npgpt[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:           # of the package, of the network, of the disk
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise UserError(f"{here}, or the name of a model on Hugging Face, which cannot be "
                        f"downloaded: {reason}") from error
