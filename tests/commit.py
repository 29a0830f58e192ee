"""What a run of CI tries where all would take too long: the commit chooses."""

import subprocess
from pathlib import Path


def number_of_commit():
    """A number that each commit has for itself; 0 outside a git repository."""
    head = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=Path(__file__).parent,
                          capture_output=True, text=True)
    return 0 if head.returncode else int(head.stdout, 16)
