"""Attention in tiles is the function of the plain layer, in memory that grows with the context."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt import backend
from npgpt.layers import (
    Key,
    attention_backward,
    attention_forward,
    tiled_attention_backward,
    tiled_attention_forward,
)
from npgpt.layers.tiled_attention import Tiles, tile_shape

KEY = Key(seed=3, step=1, row=2, site=(4,))


def heads(B=2, H=4, G=2, Tq=7, Tk=7, D=5, dtype="float64", seed=0):
    """-> q, k, v, dy."""
    rng = np.random.default_rng(seed)
    shapes = (B, H, Tq, D), (B, G, Tk, D), (B, G, Tk, D), (B, H, Tq, D)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def attended(forward, backward, q, k, v, dy, **options):
    """-> y, dq, dk, dv."""
    y, cache = forward(q, k, v, **options)
    return y, *backward(dy, cache)


def plain(*arrays, **options):
    return attended(attention_forward, attention_backward, *arrays, **options)


def tiled(*arrays, **options):
    return attended(tiled_attention_forward, tiled_attention_backward, *arrays, **options)


def assert_close(found, expected, rtol=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(initial=1))


def mask_of(kind, B, H, Tq, Tk, seed):
    seen = np.random.default_rng(seed).random((B, H, Tq, Tk)) < 0.6
    return {"none": None, "padding": seen[:, :1, :1], "of queries": seen[0, 0],
            "of heads": seen[0, :, :1], "of all": seen,
            "nothing": seen & (np.arange(Tq) % 2 == 0)[:, None]}[kind]


@settings(max_examples=200)
@given(B=st.integers(1, 3), G=st.integers(1, 3), share=st.integers(1, 3), Tq=st.integers(1, 9),
       Tk=st.integers(1, 9), D=st.integers(1, 4), tile=st.integers(1, 10), causal=st.booleans(),
       kind=st.sampled_from(["none", "padding", "of queries", "of heads", "of all", "nothing"]),
       p=st.sampled_from([0.0, 0.3]), key=st.sampled_from([None, KEY]),
       seed=st.integers(0, 2**32 - 1))
def test_equals_plain_attention(B, G, share, Tq, Tk, D, tile, causal, kind, p, key, seed):
    H = G * share
    arrays = heads(B, H, G, Tq, Tk, D, seed=seed)
    options = {"mask": mask_of(kind, B, H, Tq, Tk, seed), "p": p, "key": key, "causal": causal}
    assert_close(tiled(*arrays, **options, tile=tile), plain(*arrays, **options))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("Tq", [1, 300, 520])
def test_tiles_of_the_default_size_give_the_same(Tq, causal):
    """Several tiles of sequences, of queries and of keys."""
    arrays = heads(B=3, H=2, G=1, Tq=Tq, Tk=520, D=4)
    options = {"mask": mask_of("padding", 3, 2, Tq, 520, 1), "p": 0.2, "key": KEY, "causal": causal}
    assert_close(tiled(*arrays, **options), plain(*arrays, **options))


def test_problem_of_one_tile_gives_the_same():
    arrays = heads()
    assert_close(tiled(*arrays), plain(*arrays))


def test_in_float32_the_error_is_that_of_rounding():
    arrays = heads(Tq=40, Tk=40)
    single = [x.astype("float32") for x in arrays]
    for a, b in zip(tiled(*single, tile=8, causal=True), plain(*arrays, causal=True)):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_without_a_probability_nothing_is_dropped():
    q, k, v, _ = heads()
    np.testing.assert_array_equal(tiled_attention_forward(q, k, v, key=KEY, tile=2)[0],
                                  tiled_attention_forward(q, k, v, tile=2)[0])
    for p, key in ((0.0, KEY), (0.5, None)):
        tiles = Tiles(q, k, None, p, key, False, None)
        (rows,) = tiles.of_queries()
        (columns,) = tiles.of_keys(rows)
        assert tiles.kept(rows, columns) is None                   # no mask is made


def test_masks_of_dropout_do_not_depend_on_the_tiles():
    """The identity as values shows which weights were dropped."""
    q, k, _, _ = heads(B=3, G=4, Tk=9)
    v = np.broadcast_to(np.eye(9), (3, 4, 9, 9))
    dropped = [tiled_attention_forward(q, k, v, None, 0.5, KEY, tile=tile)[0] == 0
               for tile in (1, 2, 4, None)]
    assert dropped[0].any() and not dropped[0].all()
    for other in dropped[1:]:
        np.testing.assert_array_equal(other, dropped[0])


@pytest.mark.parametrize("tile", [1, 2, 3, None])
def test_query_that_sees_nothing_gives_zero_and_no_gradient(tile):
    q, k, v, dy = heads()
    mask = np.ones((7, 7), bool)
    mask[1], mask[3, :3] = False, False
    y, dq, dk, dv = tiled(q, k, v, dy, mask=mask, tile=tile)
    assert not y[:, :, 1].any() and not dq[:, :, 1].any() and y[:, :, 3].all()
    without = np.delete(np.arange(7), 1)
    expected = plain(q[:, :, without], k, v, dy[:, :, without], mask=mask[without])
    assert_close((dk, dv), expected[2:])


def test_query_before_all_keys_gives_zero_and_no_gradient():
    """With more queries than keys the first ones see nothing, if attention is causal."""
    q, k, v, dy = heads(Tq=7, Tk=3)
    y, dq, _, _ = tiled(q, k, v, dy, causal=True, tile=2)
    for x in (y, dq):
        assert not x[:, :, :4].any() and x[:, :, 4:].any((0, 1, 3)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_without_keys_the_output_and_the_gradients_are_zero(causal):
    q, k, v, dy = heads(Tk=0)
    y, dq, dk, dv = tiled(q, k, v, dy, causal=causal)
    assert y.shape == dq.shape == q.shape and not y.any() and not dq.any()
    assert dk.shape == dv.shape == k.shape


@pytest.mark.parametrize("Tk", [0, 3])
def test_without_queries_the_output_is_empty_and_the_gradients_are_zero(Tk):
    q, k, v, dy = heads(Tq=0, Tk=Tk)
    y, dq, dk, dv = tiled(q, k, v, dy)
    assert y.shape == dq.shape == q.shape
    assert dk.shape == dv.shape == k.shape and not dk.any() and not dv.any()


def test_empty_batch_gives_empty_results():
    arrays = heads(B=0)
    for x, y in zip(tiled(*arrays, causal=True), (arrays[0], *arrays[:3])):
        assert x.shape == y.shape


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("error")
def test_large_scores_do_not_overflow(size, dtype):
    q, k, v, dy = heads(dtype=dtype)
    found = tiled(q * size, k * size, v, dy, causal=True, tile=2)
    assert all(np.isfinite(x).all() for x in found)
    expected = plain(q * size, k * size, v, dy, causal=True)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert_close(found[::3], expected[::3], tolerance)                        # y and dv


@pytest.mark.parametrize("order", [1, -1])
def test_maximum_may_be_in_any_tile(order):
    """Rising scores: every tile scales down what the ones before it have left. Falling: none."""
    _, _, v, dy = heads(B=1, H=1, G=1, Tq=6, Tk=6, D=1)
    q = np.full((1, 1, 6, 1), 30.0)
    k = np.arange(6.0)[None, None, ::order, None] - 3
    assert_close(tiled(q, k, v, dy, tile=1), plain(q, k, v, dy))


def test_scores_of_zero_are_not_treated_as_hidden():
    q, _, v, _ = heads(G=4)
    y, _ = tiled_attention_forward(np.zeros_like(q), v, v, causal=True, tile=2)
    np.testing.assert_allclose(y[:, :, 3], v[:, :, :4].mean(2))


@pytest.mark.parametrize("Tq", [8, 6])
def test_tiles_above_the_diagonal_are_not_computed(Tq):
    """A weight of 0 times a NaN would be NaN: such values can only be in tiles that are left
    out."""
    q, k, v, dy = heads(Tq=Tq, Tk=8)
    y, cache = tiled_attention_forward(q, k, v, causal=True, tile=2)
    dq, _, _ = tiled_attention_backward(dy, cache)
    for start in (2, 4, 6):
        late = [x.copy() for x in (k, v)]
        for x in late:
            x[:, :, start:] = np.nan
        found, cache = tiled_attention_forward(q, *late, causal=True, tile=2)
        seen = start - (8 - Tq)                     # queries before these keys
        np.testing.assert_array_equal(found[:, :, :seen], y[:, :, :seen])
        assert np.isnan(found[:, :, seen:]).all()
        found, _, _ = tiled_attention_backward(dy, cache)
        np.testing.assert_array_equal(found[:, :, :seen], dq[:, :, :seen])


def test_shared_keys_and_values_are_not_copied(request):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the arguments are copied to the GPU")
    q, k, v, _ = heads()
    _, cache = tiled_attention_forward(q, k, v)
    arrays = [x for x in cache if isinstance(x, np.ndarray)]
    assert all(any(np.shares_memory(given, x) for x in arrays) for given in (k, v))


def peak_of_arrays(T, mask=None):
    """-> bytes of arrays that a forward and a backward allocate at most, for 2 heads."""
    q, k, v, dy = heads(B=1, H=2, G=2, Tq=T, Tk=T, D=8, dtype="float32")
    tracemalloc.start()
    try:
        tiled(q, k, v, dy, mask=mask, causal=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_context_and_not_with_its_square(request, monkeypatch):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the memory of the host is traced, and the layers compute elsewhere")
    cpu = backend.get_device("cpu")
    monkeypatch.setitem(backend._modules, np.ndarray, replace(cpu, tile=2**14))
    peak_of_arrays(64)                                             # imports and first calls
    peaks = {T: peak_of_arrays(T) for T in (1024, 2048)}
    assert peaks[2048] < 2 * 2048**2 * 4 / 8                       # one array of all scores
    assert peaks[2048] < 2.1 * peaks[1024]
    padding = np.ones((1, 1, 1, 2048), bool)                       # is not copied for each query
    assert peak_of_arrays(2048, padding) < peaks[2048] + 2048**2 / 8


@given(B=st.integers(1, 9), H=st.integers(1, 40), Tq=st.integers(1, 5000),
       Tk=st.integers(1, 5000), causal=st.booleans())
def test_tiles_have_as_many_scores_as_stay_in_the_cache(B, H, Tq, Tk, causal):
    q, k = np.broadcast_to(0.0, (B, H, Tq, 1)), np.broadcast_to(0.0, (B, H, Tk, 1))
    room = backend.get_device("cpu").tile
    seen = np.zeros((B, Tq), int)
    tiles = Tiles(q, k, None, 0.0, None, causal, None)
    for rows in tiles.of_queries():
        batch, queries = rows[0], rows[-1]
        seen[batch, queries] += 1
        for columns in tiles.of_keys(rows):
            assert columns[:-1] == rows[:-1]
            b, n, t = (part.stop - part.start for part in (batch, queries, columns[-1]))
            assert b * H * n * t <= 2 * room
    assert (seen == 1).all()                          # each query is in one tile


@pytest.mark.parametrize(("room", "Tq", "Tk", "size", "shape"), [
    (4096, 500, 500, None, (1, 64, 64)),         # square
    (4096, 16, 500, None, (1, 16, 256)),         # few queries: more keys
    (4096, 1, 9999, None, (1, 1, 4096)),
    (4096, 16, 20, None, (12, 16, 20)),          # few of both: more sequences
    (4096, 1, 20, None, (204, 1, 20)),
    (4096, 0, 500, None, (8, 1, 500)),
    (4096, 500, 0, None, (64, 64, 1)),
    (1, 500, 500, None, (1, 1, 1)),              # many heads
    (0, 500, 500, None, (1, 1, 1)),
    (4096, 500, 500, 16, (16, 16, 16)),          # a size that is given
    (4096, 8, 500, 16, (32, 8, 16)),
    (4096, 500, 8, 16, (32, 16, 8)),
    (100, 500, 500, 16, (1, 16, 16)),
])
def test_shape_of_a_tile(room, Tq, Tk, size, shape):
    assert tile_shape(room, Tq, Tk, size) == shape
