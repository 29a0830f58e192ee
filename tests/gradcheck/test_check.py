"""The checker must reject wrong gradients and name the argument, and accept correct ones."""

import doctest
import functools
import math
import warnings

import numpy as np
import pytest

from npgpt.gradcheck import GradientError, check_gradients
from npgpt.gradcheck import check as checker


def square(x):
    return x * x, (x,)


def square_backward(dy, cache, factor=2.0):
    return factor * cache[0] * dy


def off_by(relative):
    """The backward of `square`, wrong by this part of itself."""
    return lambda dy, cache: square_backward(dy, cache, 2 * (1 + relative))


def product(a, b):
    return a * b, (a, b)


def product_backward(dy, cache):
    return dy * cache[1], dy * cache[0]


X = np.array([0.7, -1.3, 2.1])
ONE = np.array([1.5])          # of one number the relative error is known exactly
BOTH_METHODS = pytest.mark.parametrize("method", ["both", "complex", "central"])


# --- what must be rejected ------------------------------------------------------------------------

@BOTH_METHODS
def test_wrong_factor_is_detected_and_the_argument_is_named(method):
    with pytest.raises(GradientError, match=r"^the gradient of x \(3,\) is wrong: expected a "
                       r"directional derivative of \S+, found \S+, relative error \S+ > 1e-\d+ "
                       r"\((complex|central)\)$"):
        check_gradients(square, off_by(0.5), [X], method=method)


@BOTH_METHODS
def test_zero_instead_of_a_gradient_is_detected(method):
    with pytest.raises(GradientError):
        check_gradients(square, off_by(-1), [X], method=method)


@BOTH_METHODS
def test_gradients_in_the_wrong_order_are_detected(method):
    a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    check_gradients(product, product_backward, [a, b], method=method)
    with pytest.raises(GradientError, match="gradient of a"):
        check_gradients(product, lambda dy, cache: product_backward(dy, cache)[::-1], [a, b],
                        method=method)


def test_nan_gradient_is_detected():
    with pytest.raises(GradientError, match="nan"):
        check_gradients(square, off_by(np.nan), [X])


def test_backward_that_ignores_dy_is_detected():
    with pytest.raises(GradientError):
        check_gradients(square, lambda dy, cache: 2 * cache[0], [X])


def test_backward_that_returns_dy_changed_in_place_is_detected():
    def doubled(dy, cache):
        dy *= 2
        return dy

    with pytest.raises(GradientError):
        check_gradients(lambda x: (x, ()), doubled, [X])


def test_forward_that_changes_its_input_does_not_disturb_the_check():
    def forward(x):
        x *= 3
        return x, ()

    check_gradients(forward, lambda dy, cache: 3 * dy, [X])


@pytest.mark.parametrize("gradient", [
    lambda dx: dx.sum(), lambda dx: dx.T, lambda dx: dx.reshape(-1), lambda dx: dx[None]])
def test_gradient_of_another_shape_is_detected(gradient):
    """Also if the number of elements is right."""
    with pytest.raises(GradientError, match=r"gradient of x \(2, 3\) has the shape"):
        check_gradients(square, lambda dy, cache: gradient(square_backward(dy, cache)),
                        [np.ones((2, 3))])


@pytest.mark.parametrize("count", [1, 3])
def test_missing_and_surplus_gradients_are_detected(count):
    with pytest.raises(GradientError, match=f"{count} gradients for 2 differentiable inputs"):
        check_gradients(product, lambda dy, cache: (dy * cache[1], dy * cache[0], dy)[:count],
                        [np.ones(2), np.ones(2)])


def test_gradients_may_be_a_list():
    check_gradients(product, lambda dy, cache: list(product_backward(dy, cache)), [X, X + 1])


# --- how exact it is ------------------------------------------------------------------------------

def test_default_tolerance_of_the_complex_step_is_1e_12():
    check_gradients(square, off_by(5e-13), [ONE])
    with pytest.raises(GradientError, match=r"> 1e-12 \(complex\)"):
        check_gradients(square, off_by(2e-12), [ONE])


def test_default_tolerance_of_central_differences_is_1e_7():
    check_gradients(square, off_by(5e-8), [ONE], method="central")
    with pytest.raises(GradientError, match=r"> 1e-07 \(central\)"):
        check_gradients(square, off_by(2e-7), [ONE], method="central")


@BOTH_METHODS
def test_given_tolerance_is_used(method):
    report = check_gradients(square, off_by(1e-4), [ONE], method=method, tolerance=2e-4)
    assert report.error == pytest.approx(1e-4, rel=1e-3)
    with pytest.raises(GradientError, match="> 5e-05"):
        check_gradients(square, off_by(1e-4), [ONE], method=method, tolerance=5e-5)


@BOTH_METHODS
@pytest.mark.parametrize("wrong", [-0.5, 1.0])
def test_error_is_relative_to_the_larger_of_both_derivatives(method, wrong):
    report = check_gradients(square, off_by(wrong), [ONE], method=method, tolerance=1)
    assert report.errors["x"][method if method != "both" else "complex"] == pytest.approx(0.5)


@BOTH_METHODS
def test_tolerance_of_zero_accepts_exact_agreement(method):
    report = check_gradients(lambda x: (0 * x, ()), lambda dy, cache: 0 * dy, [X], method=method,
                             tolerance=0)
    assert (report.error, report.notes) == (0, [])


@BOTH_METHODS
def test_small_functions_are_checked_relative_to_their_size(method):
    def forward(x):
        return 1e-8 * x * x, (x,)

    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, cache: 0 * dy, [X], method=method)


def test_central_differences_have_four_points():
    """With two, the error would be (3000 h)² / 6: 1.5e-4, or 1.5e-6 for the smaller step."""
    def forward(x):
        return np.sin(3000 * x), (x,)

    def backward(dy, cache):
        return 3000 * np.cos(3000 * cache[0]) * dy

    check_gradients(forward, backward, [X], method="central")


@BOTH_METHODS
def test_gradient_that_is_exactly_zero_passes(method):
    """Adding a constant to all logits does not change the softmax."""
    def forward(shift):
        z = np.exp(np.arange(4.0) + shift)
        return z / z.sum(), ()

    check_gradients(forward, lambda dy, cache: np.zeros(1), [np.ones(1)], method=method)


def test_large_constant_beside_a_small_derivative_passes():
    """The digits of y limit what central differences can measure."""
    assert check_gradients(lambda x: (1e6 + x, ()), lambda dy, cache: dy, [X]).notes == []
    assert check_gradients(lambda x: ((x, 1e6 + x), ()), lambda dy, cache: dy[0] + dy[1],
                           [X]).notes == []


def test_rounding_errors_within_the_forward_pass():
    """They limit what central differences can measure of a small derivative."""
    report = check_gradients(lambda x: ((1 + 1e-6 * x) - 1, ()), lambda dy, cache: 1e-6 * dy, [X])
    assert report.notes == []


def test_large_derivative_passes():
    report = check_gradients(lambda x: (1e9 * x, ()), lambda dy, cache: 1e9 * dy, [X])
    assert report.notes == []


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rounding_errors_are_not_mistaken_for_kinks(scale):
    """The slope of a linear function changes only by rounding errors; a long sum has many."""
    w = np.random.default_rng(0).standard_normal(400) * scale
    for seed in range(100):
        with pytest.raises(GradientError):
            check_gradients(lambda x: (np.cumsum(x * w)[-1:], ()),
                            lambda dy, cache: dy * w * 1.1, [np.linspace(-2, 2, 400)],
                            method="central", seed=seed, directions=1)


def test_inputs_are_cast_to_float64():
    seen = set()

    def forward(x):
        seen.add(x.dtype)
        return square(x)

    report = check_gradients(forward, square_backward, [X.astype(np.float32)])
    assert seen == {np.dtype("float64"), np.dtype("complex128")}
    assert report.of_method["complex"] < 1e-15


def test_one_wrong_element_of_a_million_is_detected():
    w = np.random.default_rng(0).standard_normal(10**6)

    def backward(dy, cache):
        dx = dy * w
        dx[123456] *= 1.001
        return dx

    with pytest.raises(GradientError, match="complex"):
        check_gradients(lambda x: (x * w, ()), backward, [np.ones(10**6)], directions=1)


@pytest.mark.parametrize("method", ["both", "central"])
def test_each_element_by_itself_shows_a_wrong_one_that_is_tiny_beside_the_others(method):
    w = np.full((30, 40), 1e4)
    w[7, 9] = 1e-6

    def forward(x):
        return x * w, ()

    def backward(dy, cache):
        dx = dy * w
        dx[7, 9] *= 2
        return dx

    x = np.random.default_rng(0).standard_normal((30, 40))
    check_gradients(forward, backward, [x], method="central")           # hidden by the others
    with pytest.raises(GradientError):
        check_gradients(forward, backward, [x], method=method, directions="all")
    report = check_gradients(forward, lambda dy, cache: dy * w, [x], method=method,
                             directions="all")
    assert report.directions == 1200


# --- forwards that are not analytic ---------------------------------------------------------------

def test_each_element_by_itself_shows_what_is_not_analytic_beside_larger_numbers():
    def forward(x):
        return np.array([1e4 * x[0], 1e-6 * np.abs(x[1])]), ()

    def backward(dy, cache):
        return np.array([1e4 * dy[0], 0])

    with pytest.raises(GradientError, match="not analytic"):
        check_gradients(forward, backward, [X[:2]], directions="all")


def standardise(x):
    mean, std = x.mean(), x.std()
    return (x - mean) / std, ((x - mean) / std, std)


def standardise_backward(dy, cache):
    xhat, std = cache
    return (dy - dy.mean() - xhat * (dy * xhat).mean()) / std


def scaled_by(norm):
    """x / norm(x), and its norm."""
    return lambda x: (x / norm(x), norm(x))


BLIND = {      # forward, and a backward that the complex step alone accepts
    "std": (standardise, lambda dy, cache: (dy - dy.mean()) / cache[1]),
    "abs.max": (scaled_by(lambda x: np.abs(x).max()), lambda dy, c: dy / c),
    "norm": (scaled_by(np.linalg.norm), lambda dy, c: dy / c),
    "abs": (lambda x: (np.abs(x), ()), lambda dy, cache: 0 * dy),
    "real": (lambda x: (x.real * x.real, ()), lambda dy, cache: 0 * dy),
}


@pytest.mark.parametrize("name", BLIND)
def test_backward_that_forgets_what_is_not_analytic_is_detected(name):
    forward, backward = BLIND[name]
    check_gradients(forward, backward, [X], method="complex")        # the documented blind spot
    for options in ({}, {"directions": 1}, {"directions": "all"}):
        with pytest.raises(GradientError, match=r"\(central\); the complex step and central .* not "
                           r"analytic \(look for abs, .*\), or too curved here for central "
                           "differences$"):
            check_gradients(forward, backward, [X], **options)


def test_correct_backward_of_a_forward_that_is_not_analytic_passes_with_a_note():
    report = check_gradients(standardise, standardise_backward, [X])
    assert len(report.notes) == 1
    assert report.notes[0].startswith("x: the complex step and central differences disagree")
    assert report.notes[0].endswith("the gradient agrees with central differences")
    assert report.errors["x"].keys() == {"central"}
    with pytest.raises(GradientError, match=r"\(central\); .* a cast to float\)$"):
        check_gradients(standardise, lambda dy, cache: 1.001 * standardise_backward(dy, cache), [X])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rounding_errors_of_what_is_not_analytic_are_not_mistaken_for_kinks(scale):
    """The slope changes only by rounding errors; a long sum has many."""
    w = np.random.default_rng(0).standard_normal(400) * scale
    for seed in range(100):
        report = check_gradients(lambda x: (np.cumsum(x.real * w)[-1:], ()),
                                 lambda dy, cache: dy * w, [np.linspace(-2, 2, 400)], seed=seed,
                                 directions=1)
        assert ["not analytic" in note for note in report.notes] == [True]


def test_outputs_of_a_tuple_need_not_be_analytic():
    def forward(x):
        y, cache = standardise(x)
        return (x * 3, y), cache

    def backward(dy, cache):
        return 3 * dy[0] + standardise_backward(dy[1], cache)

    assert "not analytic" in check_gradients(forward, backward, [X]).notes[0]
    with pytest.raises(GradientError, match="not analytic"):
        check_gradients(forward, lambda dy, cache: 3 * dy[0] + BLIND["std"][1](dy[1], cache), [X])


def test_analytic_forward_leaves_no_note():
    assert check_gradients(square, square_backward, [X]).notes == []


REFUSING = {       # log(1 + exp(x))
    "TypeError": lambda x: (np.logaddexp(x, 0), x),
    "ComplexWarning": lambda x: (np.array([math.log1p(math.exp(value)) for value in x]), x),
}


@pytest.mark.parametrize("reason", REFUSING)
def test_forward_that_refuses_complex_numbers_is_checked_by_central_differences(reason):
    def backward(dy, x, factor=1):
        return dy / (1 + np.exp(-x)) * factor

    report = check_gradients(REFUSING[reason], backward, [X])
    assert report.of_method.keys() == {"central"}
    assert len(report.notes) == 1
    assert f"does not accept complex numbers ({reason}: " in report.notes[0]
    with pytest.raises(GradientError, match="central"):
        check_gradients(REFUSING[reason], lambda dy, x: backward(dy, x, 1.001), [X])


@pytest.mark.filterwarnings("ignore")
def test_lost_imaginary_parts_are_noticed_if_warnings_are_ignored():
    report = check_gradients(REFUSING["ComplexWarning"], lambda dy, x: dy / (1 + np.exp(-x)), [X])
    assert "does not accept complex numbers" in report.notes[0]


@pytest.mark.filterwarnings("ignore")
def test_other_warnings_of_a_forward_are_no_refusal():
    def forward(x):
        warnings.warn("slow", stacklevel=1)
        return square(x)

    assert check_gradients(forward, square_backward, [X]).notes == []


# --- kinks ----------------------------------------------------------------------------------------

def relu(x):
    return np.where(x > 0, x, 0), (x > 0,)


def relu_backward(dy, cache):
    return dy * cache[0]


KINKED = np.array([0.0, 0.5, -0.7, 2.0])


@BOTH_METHODS
@pytest.mark.parametrize("distance", [0.0, 1e-9, -3e-7, 1e-6, 1.9e-6, -2.1e-6, 5e-6, 1e-5, -3e-4])
def test_correct_gradient_at_a_kink_or_near_one_passes(method, distance):
    check_gradients(relu, relu_backward, [KINKED + distance], method=method, directions=20)


@pytest.mark.parametrize("method", ["both", "central"])
def test_outputs_at_a_kink_are_noted_and_the_others_are_checked(method):
    report = check_gradients(relu, relu_backward, [KINKED], method=method)
    assert len(report.notes) == 1
    assert report.notes[0].startswith("x: outputs at a kink of the forward")
    assert report.notes[0].endswith("were left out; move the inputs to check them")
    assert check_gradients(relu, relu_backward, [KINKED + 0.1], method=method).notes == []
    with pytest.raises(GradientError):
        check_gradients(relu, lambda dy, cache: 1.001 * relu_backward(dy, cache), [KINKED],
                        method=method)


@BOTH_METHODS
def test_output_that_sums_over_a_kink_allows_the_slopes_on_its_two_sides(method):
    def forward(x):
        return np.where(x > 0, x, 0).sum() * 5, x

    def backward(dy, x, at_kink=0.0, factor=1.0):
        return 5 * dy * np.where(x == 0, at_kink, x > 0) * factor

    for at_kink in (0.0, 0.3, 1.0):
        report = check_gradients(forward, lambda dy, x, at=at_kink: backward(dy, x, at), [KINKED],
                                 method="central")
        assert len(report.notes) == 1 and "any slope between" in report.notes[0]
    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, x: backward(dy, x, factor=3), [KINKED], method=method)
    assert "left out" not in "".join(check_gradients(forward, backward, [KINKED]).notes)
    check_gradients(forward, lambda dy, x: backward(dy, x, factor=3), [KINKED], method=method,
                    tolerance=1)


@pytest.mark.parametrize("method", ["both", "central"])
def test_given_tolerance_counts_from_the_slopes_on_the_two_sides_of_a_kink(method):
    def check(**tolerance):
        check_gradients(lambda x: (np.where(x > 0, x, 0).sum(), x),
                        lambda dy, x: dy * (x > 0) * 1.01, [KINKED], method=method, directions=10,
                        **tolerance)

    check(tolerance=1e-2)
    with pytest.raises(GradientError):
        check()


def test_tuple_of_outputs_that_all_sum_over_a_kink():
    def forward(x):
        y = np.where(x > 0, x, 0).sum()
        return (y, 3 * y), x

    def backward(dy, x, at_kink, factor=1):
        return (dy[0] + 3 * dy[1]) * np.where(x == 0, at_kink, x > 0) * factor

    for at_kink in (0.0, 1.0):
        check_gradients(forward, lambda dy, x, at=at_kink: backward(dy, x, at), [KINKED],
                        directions=20)
    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, x: backward(dy, x, 0.0, 3), [KINKED], directions=20)


def test_complex_step_checks_what_central_differences_cannot_at_a_kink():
    def forward(x):
        return np.where(x > 0, x, 0).sum(), x

    assert check_gradients(forward, lambda dy, x: dy * (x > 0), [KINKED]).errors["x"].keys() == {
        "complex", "central"}
    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, x: dy * (x > 0) * 3, [KINKED])


@pytest.mark.parametrize("method", ["both", "central"])
def test_kink_is_recognised_beside_curvature(method):
    def forward(x):
        return np.where(x > 0, x + 100 * x**3, 0), x

    def backward(dy, x):
        return dy * (x > 0) * (1 + 300 * x * x)

    assert "kink" in check_gradients(forward, backward, [KINKED], method=method).notes[0]


def test_complex_numbers_at_a_kink_are_not_compared():
    """np.maximum compares their imaginary parts, too."""
    report = check_gradients(lambda x: (np.maximum(x, 0), (x > 0,)), relu_backward, [KINKED])
    assert ["kink" in note for note in report.notes] == [True]
    assert report.errors["x"].keys() == {"complex", "central"}


@pytest.mark.parametrize("directions", [5, "all"])
def test_maximum_with_ties_is_left_out(directions):
    def forward(x):
        return x.max(-1) * np.array([1.0, 2.0]), x.argmax(-1)

    def backward(dy, first, factor=1.0):
        dx = np.zeros((2, 3))
        dx[[0, 1], first] = dy * [1, 2] * factor
        return dx

    x = np.array([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]])        # a tie in the first row
    report = check_gradients(forward, backward, [x], directions=directions)
    assert "kink" in "".join(report.notes)
    with pytest.raises(GradientError):                        # the second row is checked
        check_gradients(forward, lambda dy, first: backward(dy, first, [1, 1.1]), [x],
                        directions=directions)


def test_backward_that_consumes_its_cache_is_checked_at_a_kink():
    def forward(x):
        return np.where(x > 0, x, 0), [x > 0]

    check_gradients(forward, lambda dy, cache: dy * cache.pop(), [KINKED])


# --- forms of inputs and results ------------------------------------------------------------------

def test_mappings_are_checked_by_name():
    def forward(x, p):
        return x * p["scale"] + p["shift"], (x, p)

    def backward(dy, cache, wrong=1.0):
        x, p = cache
        return dy * p["scale"], {"scale": dy * x, "shift": dy * wrong}

    inputs = [np.arange(3.0), {"scale": np.full(3, 2.0), "shift": np.ones(3)}]
    assert check_gradients(forward, backward, inputs).errors.keys() == {"x", "scale", "shift"}
    with pytest.raises(GradientError, match="gradient of shift"):
        check_gradients(forward, lambda dy, cache: backward(dy, cache, wrong=1.1), inputs)
    with pytest.raises(GradientError, match="differ in their names: shift"):
        check_gradients(forward, lambda dy, cache: (dy * 2, {"scale": dy * cache[0]}), inputs)


def test_nested_mappings_are_named_by_their_paths_and_keep_what_is_not_an_array_of_floats():
    def forward(p):
        return p["a"]["w"] * p["b"][0] ** p["power"], p

    def backward(dy, p):
        n, b = p["power"], p["b"][0]
        return {"a": {"w": dy * b**n}, "b": {0: dy * p["a"]["w"] * n * b**(n - 1)}, "power": None}

    inputs = [{"a": {"w": X}, "b": {0: X + 5}, "power": 3}]
    assert check_gradients(forward, backward, inputs).errors.keys() == {"a.w", "b.0"}

    def broken(dy, p):
        return backward(dy, p) | {"a": {"w": dy}}

    with pytest.raises(GradientError, match=r"gradient of a\.w \(3,\)"):
        check_gradients(forward, broken, inputs)

    def incomplete(dy, p):
        return backward(dy, p) | {"a": {}}

    with pytest.raises(GradientError, match=r"differ in their names: a\.w$"):
        check_gradients(forward, incomplete, inputs)


def test_two_mappings_may_share_a_name():
    def forward(p, q):
        return p["w"] * q["w"], (p["w"], q["w"])

    def backward(dy, cache):
        return {"w": dy * cache[1]}, {"w": dy * cache[0]}

    inputs = [{"w": np.arange(3.0)}, {"w": np.full(3, 5.0)}]
    check_gradients(forward, backward, inputs)
    with pytest.raises(GradientError, match="gradient of w"):
        check_gradients(forward, lambda dy, cache: backward(dy, cache)[::-1], inputs)


def test_tuples_of_outputs_are_checked_together():
    def forward(x):
        return (x * 2, x * x), (x,)

    def backward(dy, cache):
        return 2 * dy[0] + 2 * cache[0] * dy[1]

    check_gradients(forward, backward, [np.arange(4.0)])
    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, cache: 2 * dy[0], [np.arange(4.0)])


def test_outputs_of_a_tuple_may_have_kinks():
    def forward(x):
        return (np.where(x > 0, x, 0), x * x), x

    def backward(dy, x):
        return dy[0] * (x > 0) + 2 * x * dy[1]

    assert "kink" in check_gradients(forward, backward, [KINKED]).notes[0]


def test_integer_inputs_are_skipped():
    def forward(idx, w):
        return w[idx], (idx, w.shape)

    def backward(dy, cache):
        dw = np.zeros(cache[1])
        np.add.at(dw, cache[0], dy)
        return None, dw

    inputs = [np.array([0, 2, 2]), np.arange(6.0).reshape(3, 2)]
    assert check_gradients(forward, backward, inputs).errors.keys() == {"w"}


def test_names_of_inputs_can_be_given():
    with pytest.raises(GradientError, match="gradient of second"):
        check_gradients(lambda *inputs: product(*inputs),
                        lambda dy, cache: (dy * cache[1], dy), [X, X], names=["first", "second"])
    with pytest.raises(GradientError, match="gradient of input 1"):
        check_gradients(lambda *inputs: product(*inputs),
                        lambda dy, cache: (dy * cache[1], dy), [X, X])


def test_names_of_inputs_are_those_of_a_decorated_function():
    @functools.wraps(product)
    def decorated(*inputs, **options):
        return product(*inputs, **options)

    assert check_gradients(decorated, product_backward, [X, X]).errors.keys() == {"a", "b"}
    partial = functools.partial(product)          # it has no argument names
    assert check_gradients(partial, product_backward, [X, X]).errors.keys() == {"input 0",
                                                                                "input 1"}


# --- the report -----------------------------------------------------------------------------------

def test_report_counts_and_has_the_largest_errors():
    report = check_gradients(square, square_backward, [X])
    assert (report.examples, report.directions) == (1, 2)
    assert report.errors.keys() == {"x"} and report.errors["x"].keys() == {"complex", "central"}
    assert report.of_method == report.errors["x"]
    assert report.error == report.errors["x"]["central"] < 1e-7
    other = check_gradients(product, product_backward, [X, X], directions=3)
    both = report + other
    assert (both.examples, both.directions) == (2, 5)
    assert both.errors.keys() == {"x", "a", "b"}
    assert both.error == max(report.error, other.error)
    assert both.errors == report.errors | other.errors
    assert (both + both).errors == both.errors


def test_report_has_the_largest_error_of_all_directions():
    errors = [check_gradients(square, off_by(1e-3), [X], tolerance=1, directions=n).error
              for n in range(1, 8)]
    assert errors == sorted(errors) and errors[0] < errors[-1]
    last_alone = [check_gradients(square, off_by(1e-3), [X], tolerance=1, directions=1,
                                  seed=seed).error for seed in range(5)]
    assert len(set(last_alone)) == 5                   # directions differ, and so do seeds


def test_seed_decides_the_directions():
    def errors(**options):
        return check_gradients(square, off_by(1e-3), [X], tolerance=1, **options).errors

    assert errors(seed=1) == errors(seed=1) != errors(seed=2)
    assert errors() == errors(seed=0) != errors(seed=1)


def test_notes_of_two_reports_are_combined_without_repetition():
    report = check_gradients(relu, relu_backward, [KINKED])
    other = check_gradients(standardise, standardise_backward, [X])
    assert (report + other + report).notes == report.notes + other.notes


# --- invalid calls --------------------------------------------------------------------------------

def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of both, complex, central, got 'for"):
        check_gradients(square, None, [X], method="forward")


@pytest.mark.parametrize("directions", [0, -1])
def test_no_direction_is_refused(directions):
    with pytest.raises(ValueError, match=f'must be at least 1 or "all", got {directions}'):
        check_gradients(square, square_backward, [X], directions=directions)


@pytest.mark.parametrize("x", [np.arange(3), [1.0, 2.0], 0.5, np.array([True]), 1j * X])
def test_inputs_without_an_array_of_floats_are_refused(x):
    """Else the check would pass without having checked anything."""
    with pytest.raises(ValueError, match="nothing to check"):
        check_gradients(square, lambda dy, cache: None, [x])


def test_forward_that_returns_y_alone_is_refused():
    with pytest.raises(ValueError, match="must return a tuple of y and the cache"):
        check_gradients(lambda x: x * 2, lambda dy, cache: 2 * dy, [np.ones((2, 3))])


def test_empty_arrays_pass():
    check_gradients(square, square_backward, [np.ones((0, 3))])


def test_example_in_the_documentation_runs():
    results = doctest.testmod(checker, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0 and results.failed == 0
