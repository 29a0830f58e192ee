"""Every backward pass is the derivative of its forward pass, by two independent methods.

A hundred examples of each layer, a thousand with --hypothesis-profile=full. A table of the numbers
of examples and the largest errors is printed at the end.
"""

from functools import reduce
from operator import add

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.gradcheck import check_gradients
from npgpt.layers import LAYERS
from tests.cases import CASES


def test_every_layer_has_a_case():
    assert CASES.keys() >= LAYERS.keys()


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_the_forward(name, gradient_table):
    reports = []

    @given(CASES[name]())
    def check(case):
        reports.append(
            check_gradients(case.forward, case.backward, case.inputs, directions=1))

    check()
    total = reduce(add, reports)
    assert total.examples >= settings.default.max_examples
    assert total.of_method.keys() == {"complex", "central"}
    assert all("kink" in note for note in total.notes)       # of a ReLU in a block
    gradient_table[name] = total


@pytest.mark.parametrize("name", [*LAYERS, "mlp", "self_attention", "cross_attention", "block",
                                  "gated_mlp", "grouped_attention", "llama_block", "projection",
                                  "adapted_block", "adapted_llama_block"])
@settings(max_examples=3)
@given(data=st.data())
def test_every_element_of_every_gradient_is_right(name, data):
    """A random direction could hide one wrong element among many."""
    case = data.draw(CASES[name]())
    check_gradients(case.forward, case.backward, case.inputs, directions="all")
