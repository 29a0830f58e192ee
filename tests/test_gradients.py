"""Every backward pass is the derivative of its forward pass, by two independent measures."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from npgpt.gradcheck import check_gradients
from npgpt.layers import LAYERS
from tests.cases import CASES


def test_every_layer_has_a_case():
    assert CASES.keys() >= LAYERS.keys()


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_backward_matches_four_point_differences(name, data):
    case = data.draw(CASES[name]())
    assume(case.smooth)
    check_gradients(case.forward, case.backward, case.inputs, method="central", directions=1)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_backward_matches_the_complex_step(name, data):
    case = data.draw(CASES[name]())
    check_gradients(case.forward, case.backward, case.inputs, method="complex", directions=1)
