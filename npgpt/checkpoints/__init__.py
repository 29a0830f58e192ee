"""Models and runs on disk, in Hugging Face's formats, with what training needs to go on."""

from npgpt.checkpoints.models import load_model, save_model

__all__ = ["load_model", "save_model"]
