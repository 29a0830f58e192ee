"""The sentences that the terminal and the page have in common."""

import math

from npgpt.explain.numbers import norm, number, shape

LEGEND = ("Below each line are the values that it made or changed, with their shapes. [1] is the "
          "part at index 1 of the first axis. The inputs are random numbers with two decimals "
          "(seed {seed}). Numbers are shown with four significant digits.")
ROUNDING = "A number like 1e-16 would be 0 without rounding errors."
MEANING = ("d{output} is the gradient of the loss with respect to {output}: how much the loss "
           "grows when a number of {output} grows a little. {upstream} {computed}")
COMPUTED = "The backward computes the gradients of the inputs from it: {gradients}."
ADDED = "The backward computes the gradients of the parameters from it and adds them to grads."
UPSTREAM = {
    "": "In a model it comes from the layers above; here it is random.",
    "cross_entropy": "Here the output is the loss itself, so it is 1.",
    "linear_cross_entropy": "Here the output is the loss itself, so it is 1.",
    "gpt": "Here it is what cross_entropy_backward returns for random targets.",
}
MEASURED = ("The same gradients, measured by finite differences, without the backward: change one "
            "number of an input by ±h and ±2h, h = {h}, run the forward, and see how much {loss} "
            "changes. The change divided by the step is the gradient of that number.")


def origin(e):
    """The file of the code, and the sizes."""
    return f"{e.path}, with {', '.join(f'{letter}={size}' for letter, size in e.sizes.items())}"


def legend(e):
    """How to read the steps."""
    noise = f" {ROUNDING}" if e.has_rounding else ""
    return LEGEND.format(seed=e.seed) + noise


def meaning(e):
    """What the backward takes and what it returns."""
    upstream = UPSTREAM.get(e.name, UPSTREAM[""])
    computed = (ADDED if e.gradients == ["grads"]
                else COMPUTED.format(gradients=", ".join(e.gradients)))
    return MEANING.format(output=e.output, upstream=upstream, computed=computed)


def measured(e):
    """How the gradients were measured."""
    o = e.output
    loss = o if o == "loss" else f"sum({o} * d{o})"
    return MEASURED.format(h=number(e.step), loss=f"the {loss}" if o == "loss" else loss)


def caption(value):
    """A Value -> the text after its name."""
    if value.data is None:
        about = value.text
    else:
        about = f" {shape(value.data)}"
        if value.origin:
            name, line = value.origin
            about += (f", unchanged since line {line}" if name == value.name
                      else f", the array {name} of line {line}")
        elif value.changed is not None:
            count, size = int(value.changed.sum()), value.changed.size
            if count < size:
                about += f", {count} of its {size} numbers changed in place"
            elif not value.brief:
                about += ", changed in place"
        if value.brief and not value.origin:
            about += f", norm {norm(value.data)}"
    return f"{about}, {value.note}" if value.note else about


def outcome(check):
    """Whether a gradient is right, and its error."""
    if math.isnan(check.error) and check.found.shape != check.measured.shape:
        return f"✗ its shape is {check.found.shape}, but must be {check.measured.shape}"
    about = "" if check.brief else "relative error "
    return f"{'✓' if check.right else '✗'} {about}{check.error:.1e}"


def verdict(e):
    """The result of all checks together."""
    if e.right:
        return ("✓ Every gradient is right. npgpt.gradcheck also verified them in random "
                f"directions: the largest relative error is {e.error:.1e}.")
    wrong = ", ".join(check.name for check in e.checks if not check.right)
    sentence = f"✗ The backward is not the derivative of the forward: {wrong or 'see below'}."
    return f"{sentence} npgpt.gradcheck: {e.message}." if e.message else sentence
