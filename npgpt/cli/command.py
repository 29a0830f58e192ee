"""A command: what goes wrong becomes one line on stderr and an exit status.

    0          done
    2          refused before anything was done: nothing was written
    3          failed while running: the last checkpoint is whole
    130, 143   stopped by Ctrl-C or by SIGTERM
    141        the reader of its output has gone
"""

import os
import sys

from npgpt.errors import RunError, UserError, with_flags


def run_command(name, main, less_memory="a smaller model takes less"):
    """Call main() -> exit status or None; an error meant for a person becomes one line on stderr.
    less_memory: what to do when memory runs out, with options in backticks.

    Any other error is a bug in npgpt and shows a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):        # a terminal may lack a character of the text
            stream.reconfigure(errors="replace")
    try:
        return main() or 0
    except BrokenPipeError:                       # sample.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        status, message = 2, error.message
    except RunError as error:
        status, message = 3, error.message
    except MemoryError as error:
        status, message = 3, f"out of memory ({str(error).rstrip('.')}): {less_memory}"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, message = 3, f"{where}{error.strerror or error}"
    print(f"{name}: {' '.join(with_flags(message).split())}", file=sys.stderr)
    return status
