"""`python -m npgpt COMMAND ...`, also installed as `npgpt`: the scripts train.py and sample.py, and
the commands that are not scripts."""

import runpy
import sys

from npgpt.cli.bundle import bundled
from npgpt.cli.command import run_command
from npgpt.cli.options import suggestion, version
from npgpt.errors import UserError

COMMANDS = {
    "train": "train a GPT on a text",
    "sample": "generate text with a trained GPT",
    "explain": "run a layer on small numbers, line by line, forward and backward",
    "tokenizer": "train a byte-level BPE; encode texts into a token file; verify one",
    "eval": "measure the loss of a model on a text: perplexity, bits per byte",
    "merge": "merge the adapters of a LoRA into their base model",
    "ranks": "under mpiexec: whether its processes can train together, and how fast",
    "report": "plot the losses of a run: npgpt report RUN PICTURE",
}


def main(arguments=None):
    """Run the command that the first argument names -> exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("npgpt", lambda: _run(arguments))


def _run(arguments):
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: npgpt COMMAND ...\n")
        print("\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()))
        print("\nnpgpt COMMAND --help shows the options of a command.")
        return 0
    if command == "--version":
        print(version())
        return 0
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or ";"
        raise UserError(f"unknown command {command!r}{hint} the commands are {', '.join(COMMANDS)}")
    if command == "explain":
        from npgpt.explain import command as explain

        return explain.main(rest)
    if command == "report":
        from npgpt.report import losses

        return losses.main(rest)
    if command == "tokenizer":
        from npgpt.text import command as tokenizer

        return tokenizer.main(rest)
    if command == "eval":
        from npgpt.training import perplexity_command

        return perplexity_command.main(rest)
    if command == "merge":
        from npgpt.training import merge_command

        return merge_command.main(rest)
    if command == "ranks":
        from npgpt.training import ranks_command

        return ranks_command.main(rest)
    return runpy.run_path(str(bundled(f"{command}.py")))["main"](rest)


if __name__ == "__main__":
    raise SystemExit(main())
