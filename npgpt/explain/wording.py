"""The sentences that a terminal and a page have in common."""

import math

from npgpt.explain.numbers import norm, number, shape

LEGEND = ("Under each line stands what it made or changed, with its shape. [1] is the part at "
          "index 1 of the first axis. The inputs are random, with two decimals (seed {seed}); "
          "numbers are shown to four significant digits.")
ROUNDING = "A number like 1e-16 is 0 but for rounding."
MEANING = ("d{output} says, for each number of {output}, how much the loss grows when that number "
           "grows by a little. {upstream} The backward turns it into the same for each input: "
           "{gradients}.")
UPSTREAM = {
    "": "In a model the layers above send it back; here it is random.",
    "cross_entropy": "Here both are the same number, so it is 1.",
    "gpt": "It is what cross_entropy_backward answers for random targets.",
}
MEASURED = ("The same gradients, measured without the backward: move one number of an input up and "
            "down by h = {h}, run the forward, and see how much {loss} changes. Divided by the "
            "move, that is the gradient of this number.")


def origin(e):
    """Where the code is, and how large the arrays."""
    return f"{e.path}, with {', '.join(f'{letter}={size}' for letter, size in e.sizes.items())}"


def legend(e):
    """How to read what follows."""
    noise = f" {ROUNDING}" if e.has_rounding else ""
    return LEGEND.format(seed=e.seed) + noise


def meaning(e):
    """What comes into the backward and what goes out of it."""
    upstream = UPSTREAM.get(e.name, UPSTREAM[""])
    return MEANING.format(output=e.output, upstream=upstream, gradients=", ".join(e.gradients))


def measured(e):
    """How the gradients were measured."""
    o = e.output
    loss = o if o == "loss" else f"sum({o} * d{o})"
    return MEASURED.format(h=number(e.step), loss=f"the {loss}" if o == "loss" else loss)


def caption(value):
    """A Value -> what stands beside its name."""
    if value.data is None:
        about = value.text
    else:
        about = f" {shape(value.data)}"
        if value.origin:
            name, line = value.origin
            about += (f", as it was after line {line}" if name == value.name
                      else f", the array {name} of line {line}")
        elif value.changed is not None:
            count, size = int(value.changed.sum()), value.changed.size
            about += (", changed in place" if count == size
                      else f", {count} of its {size} numbers changed in place")
        if value.brief and not value.origin:
            about += f", norm {norm(value.data)}"
    return f"{about}, {value.note}" if value.note else about


def outcome(check):
    """Whether a gradient is right, and by how much it is not."""
    if math.isnan(check.error) and check.found.shape != check.measured.shape:
        return f"✗ its shape is {check.found.shape}, and must be {check.measured.shape}"
    about = "" if check.brief else "relative error "
    return f"{'✓' if check.right else '✗'} {about}{check.error:.1e}"


def verdict(e):
    """What all the checks say together."""
    if e.right:
        return (f"✓ Every gradient is right. npgpt.gradcheck, which checks them once more by the "
                f"complex step, finds a relative error of at most {e.error:.1e}.")
    wrong = ", ".join(check.name for check in e.checks if not check.right)
    sentence = f"✗ The backward is not the derivative of the forward: {wrong or 'see below'}."
    return f"{sentence} npgpt.gradcheck: {e.message}." if e.message else sentence
