"""`python -m npgpt.report RUN PICTURE`."""

import sys

from npgpt.cli.command import run_command
from npgpt.report.losses import main

raise SystemExit(run_command("npgpt report", lambda: main(sys.argv[1:])))
