"""npgpt: a GPT in NumPy and CuPy, with every backward pass written by hand.

    from npgpt import AdamW, Dataset, GPT, GPTConfig, load_source, train_step
"""

import signal
import sys
from pathlib import PurePath

_is_command = PurePath(*sys.argv[:1]).stem in ("npgpt", "-m")
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from npgpt import gradcheck
from npgpt.backend import get_device
from npgpt.errors import UserError
from npgpt.layers import Key
from npgpt.models.gpt import GPT, GPTConfig
from npgpt.models.llama import Llama, LlamaConfig
from npgpt.models.model import Model
from npgpt.optim import AdamW, Muon, OptimizerGroup
from npgpt.text.dataset import Dataset
from npgpt.text.source import load_source
from npgpt.training.step import train_step

__version__ = "0.1.0"
__all__ = ["GPT", "AdamW", "Dataset", "GPTConfig", "Key", "Llama", "LlamaConfig", "Muon",
           "OptimizerGroup", "UserError", "from_pretrained", "get_device", "gradcheck",
           "load_source", "train_step"]

from_pretrained = Model.from_pretrained      # of whatever family the directory names
