"""The files at the top of a checkout that are also part of the installed package: train.py,
sample.py and configs/."""

from pathlib import Path

from npgpt.errors import UserError


def bundled(name):
    """The path of such a file or directory. Raises UserError if it is missing."""
    package = Path(__file__).parent.parent
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{name} is missing from this installation of npgpt; reinstall npgpt")


def command_line(name):
    """The command that runs a script: "python train.py" in a checkout, else "npgpt train"."""
    return f"python {name}.py" if Path(f"{name}.py").exists() else f"npgpt {name}"
