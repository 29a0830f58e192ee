"""Models on Hugging Face, by name."""

import re
from pathlib import Path

from npgpt.errors import UserError

NAME = r"\w[\w.-]*/\w[\w.-]*"             # OWNER/MODEL
LONGEST_REASON = 300                      # characters of a message from elsewhere
FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
         "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
         "generation_config.json", "adapter_config.json", "base.json"]


def is_name(name):
    """Whether a text can be the name of a model on Hugging Face, and not a path."""
    path = Path(name)
    return bool(re.fullmatch(NAME, name)) and not path.parent.is_dir() and path.suffix != ".gguf"


def download(name, missing):
    """Download a model, or what is new in it -> the path of its directory. missing: the
    beginning of the error message, which says that it is not on this machine. Raises UserError."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{missing}; to download {name} from Hugging Face, first run: "
                        "pip install 'npgpt[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:           # of the package, of the network, of the disk
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise UserError(f"{missing}, and {name} cannot be downloaded from Hugging Face: {reason}"
                        ) from error
