"""Every backward pass is the derivative of its forward pass, by two independent methods.

A hundred examples of each layer with each method, a thousand with --hypothesis-profile=full. A
table of the numbers of examples and the largest errors is printed at the end.
"""

from functools import reduce
from operator import add

import pytest
from hypothesis import assume, given, settings

from npgpt.gradcheck import check_gradients
from npgpt.gradcheck.check import METHODS
from npgpt.layers import LAYERS
from tests.cases import CASES


def test_every_layer_has_a_case():
    assert CASES.keys() >= LAYERS.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_the_forward(name, method, gradient_table):
    reports = []

    @given(CASES[name]())
    def check(case):
        assume(case.smooth or method == "complex")
        reports.append(check_gradients(case.forward, case.backward, case.inputs, method=method,
                                       directions=1))

    check()
    total = reduce(add, reports)
    assert total.examples >= settings.default.max_examples
    gradient_table[name, method] = total.examples, total.error
