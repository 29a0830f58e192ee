"""npgpt: a GPT in NumPy and CuPy, with every backward pass written by hand."""

from npgpt import gradcheck
from npgpt.errors import UserError
from npgpt.models.gpt import GPT, GPTConfig

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "UserError", "gradcheck"]
