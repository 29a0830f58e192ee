"""The files that stand at the top of a checkout and travel inside the installed package:
train.py, sample.py and configs/."""

from pathlib import Path

from npgpt.errors import UserError


def bundled(name):
    """The path of such a file or folder. Raises UserError if this installation lacks it."""
    package = Path(__file__).parent.parent
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{name} is missing from this installation of npgpt; install it again")


def command_line(name):
    """How a person here runs a script: "python train.py" in a checkout, else "npgpt train"."""
    return f"python {name}.py" if Path(f"{name}.py").exists() else f"npgpt {name}"
