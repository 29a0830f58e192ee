"""The names of the first edition, for callers that are not yet moved to source, load and dataset.
To be deleted with the last of them."""

from npgpt.text import dataset, load
from npgpt.text.load import SHAKESPEARE, Unavailable, read_text  # noqa: F401
from npgpt.text.source import TokenSource


class Text(load.Text):
    @property
    def sha256(self):
        return load.sha256(self.text)


def load_text(name=None):
    return Text(*load.load_text(name))


class Dataset(dataset.Dataset):
    def __init__(self, text, block_size, device, tokenizer=None):
        super().__init__(TokenSource.from_text(text, tokenizer=tokenizer), block_size, device)
