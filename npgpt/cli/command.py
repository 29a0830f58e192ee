"""Running a command: an error becomes one line on stderr and an exit status.

    0          success
    2          invalid request; nothing was written
    3          failed while running; the last checkpoint is complete
    130, 143, 129    stopped by Ctrl-C, by SIGTERM, by a closed terminal (SIGHUP)
    141        the reader of its output has closed the pipe
"""

import errno
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress

from npgpt.errors import RunError, UserError, with_flags


def run_command(name, main, less_memory="use a smaller model"):
    """Call main(), which returns an exit status or None -> exit status. An error for the user
    becomes one line on stderr; any other is a bug in npgpt and shows a traceback.

    less_memory: what to do if memory runs out, with options in backticks.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:      # set while a script was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _any_character():
        try:
            return main() or 0
        except SystemExit as stop:                # argparse, after --help or --version
            return stop.code or 0
        except BrokenPipeError:                   # sample.py | head
            discard(sys.stdout)
            return 141
        except KeyboardInterrupt:
            return 130
        except UserError as error:
            status, message = 2, error.message
        except RunError as error:
            status, message = 3, error.message
        except MemoryError as error:
            status, message = 3, _out_of_memory(error, less_memory)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            status, message = 3, f"{where}{error.strerror or error}"
            if error.errno == errno.ENOMEM:
                message = _out_of_memory(error, less_memory)
        try:
            print(f"{name}: {' '.join(with_flags(message).split())}", file=sys.stderr)
        except OSError:                           # the terminal is closed
            discard(sys.stderr)
        return status


@contextmanager
def ended_by_signals():
    """Inside, SIGTERM and SIGHUP raise SystemExit with their exit status, so that unfinished work
    is cleaned up. Signals that are already ignored or handled stay as they are."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number, frame):
    raise SystemExit(128 + number)


def discard(stream):
    """Discard what a stream writes from now on, and what is still in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _out_of_memory(error, less_memory):
    detail = str(error).rstrip(".") if isinstance(error, MemoryError) else error.strerror
    return f"out of memory{f' ({detail})' if detail else ''}; {less_memory}"


@contextmanager
def _any_character():
    """A character that the encoding of stdout or stderr lacks is written as "?"."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before):
            with suppress(OSError):               # it flushes, and the disk may be full
                stream.reconfigure(errors=errors)
