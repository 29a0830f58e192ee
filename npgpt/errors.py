"""What a person sees when something goes wrong: one line, and an exit status that says what came
of the run.

    0          done
    2          refused before anything was done: nothing was written
    3          failed while running: the last checkpoint is whole
    130, 143   stopped by Ctrl-C or by SIGTERM
"""

import os
import sys


class UserError(ValueError):
    """Something asked for cannot be done; the message says what is wrong and what to do."""


class RunError(RuntimeError):
    """The run could not go on; the message says why and what is left."""


def run_command(name, main, less_memory="a smaller model takes less"):
    """Call main() -> exit status or None; what it raises by design becomes one line on stderr.
    less_memory: what to do where memory runs out, in words.

    What is not listed here is a bug in npgpt, and shows itself with a traceback.
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
        status, message = 2, str(error)
    except RunError as error:
        status, message = 3, str(error)
    except MemoryError as error:
        status, message = 3, f"out of memory ({str(error).rstrip('.')}): {less_memory}"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, message = 3, f"{where}{error.strerror or error}"
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status
