import numpy as np
import pytest

from npgpt.layers import rope_backward, rope_forward, rotation


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def rotated(x, start=0, theta=10000.0):
    T, D = x.shape[-2:]
    return rope_forward(x, *rotation(np, T, D, theta, start, "float64"))[0]


def test_channels_i_and_i_plus_half_are_a_complex_number_that_is_rotated():
    T, D, theta = 5, 6, 100.0
    x = normal(2, 3, T, D)
    angle = np.array([[t * theta ** (-2 * i / D) for i in range(3)] for t in range(T)])
    expected = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)
    np.testing.assert_allclose(rotated(x, theta=theta),
                               np.concatenate([expected.real, expected.imag], axis=-1), rtol=1e-12)


def test_quarter_of_a_turn_by_hand():
    y, cache = rope_forward(np.array([[3.0, 5.0]]), np.zeros((1, 1)), np.ones((1, 1)))
    assert y.tolist() == [[-5.0, 3.0]]
    assert rope_backward(y, cache).tolist() == [[3.0, 5.0]]


def test_product_of_a_query_and_a_key_depends_only_on_their_distance():
    q, k = (rotated(np.tile(normal(8, seed=s), (12, 1))) for s in (0, 1))
    for distance in (0, 1, 7):
        products = [q[t] @ k[t - distance] for t in range(distance, 12)]
        np.testing.assert_allclose(products, products[0], rtol=1e-12)
    assert len({round(q[11] @ key, 6) for key in k}) == 12


def test_norm_of_every_pair_is_kept():
    x = normal(2, 3, 7, 10)
    pairs, before = (np.hypot(a[..., :5], a[..., 5:]) for a in (rotated(x), x))
    np.testing.assert_allclose(pairs, before, rtol=1e-12)


def test_first_position_is_not_rotated():
    x = normal(2, 3, 4, 6)
    np.testing.assert_array_equal(rotated(x)[..., 0, :], x[..., 0, :])


def test_start_is_the_position_of_the_first_token():
    x = normal(2, 3, 9, 6)
    np.testing.assert_allclose(rotated(x[..., 4:, :], start=4), rotated(x)[..., 4:, :], rtol=1e-12)


def test_a_larger_theta_turns_all_pairs_but_the_first_more_slowly():
    slow, fast = (rotation(np, 2, 8, theta, dtype="float64")[1][1] for theta in (1e6, 1e2))
    assert slow[0] == fast[0] == np.sin(1.0)
    assert (slow[1:] < fast[1:]).all()


def test_backward_is_the_rotation_by_the_opposite_angle():
    x, angles = normal(2, 3, 7, 10), rotation(np, 7, 10, dtype="float64")
    y, cache = rope_forward(x, *angles)
    np.testing.assert_allclose(rope_backward(y, cache), x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_of_a_late_position_are_exact(dtype):
    """In float32 the angle itself would be wrong by up to 5e-4, 8000 times half of its epsilon."""
    cos, sin = rotation(np, 1, 64, start=8000, dtype=dtype)
    angle = [8000 * 10000.0 ** (-i / 32) for i in range(32)]
    assert cos.dtype == sin.dtype == dtype and cos.shape == sin.shape == (1, 32)
    rounding = {"float32": 6e-8, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(cos[0], np.cos(angle), rtol=0, atol=rounding)
    np.testing.assert_allclose(sin[0], np.sin(angle), rtol=0, atol=rounding)


def test_angles_are_float32_with_a_theta_of_10000_by_default():
    for given, expected in zip(rotation(np, 3, 6), rotation(np, 3, 6, 1e4, 0, "float32")):
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, expected)
