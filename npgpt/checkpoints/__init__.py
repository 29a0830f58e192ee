"""Models and training runs on disk, in Hugging Face's formats where there is one."""

from npgpt.checkpoints.models import load_model, save_model

__all__ = ["load_model", "save_model"]
