"""`python -m tests.reliability.stopping N ...` is train.py with Ctrl-C in the N-th step that it
takes."""

import signal
import sys

import train

number, words = int(sys.argv[1]), sys.argv[2:]
train_step, taken = train.train_step, 0


def stopping_step(*arguments, **options):
    global taken
    taken += 1
    if taken == number:
        signal.raise_signal(signal.SIGINT)
    return train_step(*arguments, **options)


train.train_step = stopping_step
if __name__ == "__main__":
    raise SystemExit(train.main(words))
