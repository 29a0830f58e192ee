"""PyTorch's random stream, compared with numbers in the lecture, and with PyTorch itself if it is
installed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.layers import attention_forward, causal_mask, cross_entropy_forward, embedding_forward
from npgpt.lecture import cephes
from npgpt.lecture.torch_random import TorchRandom
from npgpt.text.characters import CharTokenizer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHAKESPEARE = CharTokenizer("\n !$&',-.3:;?" + LETTERS + LETTERS.lower())
N_TRAIN = 1_003_854      # characters in the training split of Tiny Shakespeare
ROWS = np.array([        # 9 tokens from each of the four offsets below
    [24, 43, 58, 5, 57, 1, 46, 43, 39], [44, 53, 56, 1, 58, 46, 39, 58, 1],
    [52, 58, 1, 58, 46, 39, 58, 1, 46], [25, 17, 27, 10, 0, 21, 1, 54, 39],
])
SEEDS = st.integers(-2**40, 2**40)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def printed(x, digits=4):
    """A number as printed with four digits."""
    return np.round(np.asarray(x, np.float64), digits).tolist()


def test_batch_offsets_equal_those_of_the_lecture():
    offsets = TorchRandom(1337).randint(N_TRAIN - 8, (4,))
    assert offsets.tolist() == [76049, 234249, 934904, 560986]
    assert offsets.dtype == np.int64


def test_untrained_bigram_has_the_loss_of_the_lecture():
    logits, _ = embedding_forward(ROWS[:, :-1], TorchRandom(1337).embedding(65, 65))
    loss, _ = cross_entropy_forward(logits, ROWS[:, 1:])
    assert printed(loss) == 4.8786


def test_untrained_bigram_writes_the_text_of_the_lecture():
    random = TorchRandom(1337)
    table = random.embedding(65, 65)
    tokens = [0]
    for _ in range(100):
        tokens.append(random.multinomial(softmax(table[tokens[-1:]]))[0])
    assert SHAKESPEARE.decode(tokens) == (
        "\nSKIcLT;AcELMoTbvZv C?nq-QE33:CJqkOKH-q;:la!oiywkHjgChzbQ?u!3bLIgwevmyFJGUGp"
        "\nwnYWmnxKWWev-tDqXErVKLgJ"
    )


def test_small_integers_equal_those_of_the_lecture():
    assert TorchRandom(42).randint(10, (3, 2)).tolist() == [[2, 7], [6, 4], [6, 5]]


def test_normal_numbers_equal_those_of_the_lecture():
    x = TorchRandom(1337).randn((4, 8, 2))
    assert x.dtype == np.float32
    assert printed(x[0]) == [
        [0.1808, -0.0700], [-0.3596, -0.9152], [0.6258, 0.0255], [0.9545, 0.0643],
        [0.3612, 1.1679], [-1.3499, -0.5102], [0.2360, -0.2398], [-0.9211, 1.5433],
    ]
    means = np.cumsum(x[0], axis=0) / np.arange(1, 9)[:, None]
    assert printed(means) == [
        [0.1808, -0.0700], [-0.0894, -0.4926], [0.1490, -0.3199], [0.3504, -0.2238],
        [0.3525, 0.0545], [0.0688, -0.0396], [0.0927, -0.0682], [-0.0341, 0.1332],
    ]


def test_one_head_and_the_variances_after_it_equal_those_of_the_lecture():
    random = TorchRandom(1337)
    x = random.randn((4, 8, 32))
    key, query, value = (x @ random.linear(32, 16, bias=False)[0] for _ in range(3))
    wei = query @ key.swapaxes(-1, -2)
    wei = softmax(np.where(causal_mask(np, 8, 8), wei, -math.inf))
    assert printed(wei[0, 7]) == [.0210, .0843, .0555, .2297, .0573, .0709, .2423, .2391]
    assert printed(wei[0, 1]) == [.1574, .8426, 0, 0, 0, 0, 0, 0]

    heads = (part[:, None] for part in (query * 4, key, value))      # attention divides by √16
    y, _ = attention_forward(*heads, causal_mask(np, 8, 8))
    assert y[:, 0].shape == (4, 8, 16)
    np.testing.assert_allclose(y[:, 0], wei @ value, rtol=1e-4, atol=1e-6)

    k, q = random.randn((4, 8, 16)), random.randn((4, 8, 16))
    wei = q @ k.swapaxes(-1, -2) / 4
    assert [printed(v.var(ddof=1)) for v in (k, q, wei)] == [1.0449, 1.0700, 1.0918]


def test_softmax_sharpens_as_in_the_lecture():
    x = np.array([0.1, -0.2, 0.3, -0.2, 0.5])
    assert printed(softmax(x)) == [0.1925, 0.1426, 0.2351, 0.1426, 0.2872]
    assert printed(softmax(8 * x)) == [0.0326, 0.0030, 0.1615, 0.0030, 0.8000]


@pytest.mark.parametrize("high", [0, -1, 2**28])
def test_unsupported_range_is_refused(high):
    with pytest.raises(ValueError, match=f"less than .*, got {high}$"):
        TorchRandom(0).randint(high, (3,))


def test_logarithm_sine_and_cosine_are_within_two_ulps():
    x = TorchRandom(0).rand((100_000,))
    angle = np.float32(2 * np.pi) * x
    exact = angle.astype(np.float64)
    sin, cos = cephes.sincos(angle)
    ulp = 2.0**-24
    assert np.abs(sin - np.sin(exact)).max() < 2 * ulp
    assert np.abs(cos - np.cos(exact)).max() < 2 * ulp
    log, exact = cephes.log(1 - x), np.log(1 - x.astype(np.float64))
    assert (np.abs(log - exact) <= 4 * ulp * np.abs(exact)).all()


def call(random, name, *arguments):
    return getattr(random, name)(*arguments)


def in_torch(torch, name, *arguments):
    """The same call in PyTorch -> NumPy array."""
    calls = {
        "randint": lambda high, shape: torch.randint(high, shape),
        "rand": torch.rand,
        "randn": torch.randn,
        "uniform": lambda low, high, shape: torch.empty(shape).uniform_(low, high),
        "exponential": lambda shape, dtype: torch.empty(
            shape, dtype=getattr(torch, dtype)).exponential_(),
        "multinomial": lambda probs: torch.multinomial(torch.tensor(probs), 1)[:, 0],
        "embedding": lambda *sizes: torch.nn.Embedding(*sizes).weight,
    }
    return calls[name](*arguments).detach().numpy()


SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)
BOUNDS = st.tuples(st.floats(-3, 3), st.floats(0, 3)).map(lambda b: (b[0], b[0] + b[1]))
CALLS = st.one_of(
    st.tuples(st.just("randint"), st.integers(1, 2**28 - 1), SHAPES),
    st.tuples(st.just("rand"), SHAPES),
    st.tuples(st.just("randn"), SHAPES),
    st.tuples(st.just("randn"), st.tuples(st.integers(0, 40))),
    st.tuples(st.just("exponential"), SHAPES, st.sampled_from(["float32", "float64"])),
    st.tuples(st.just("embedding"), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(BOUNDS, SHAPES).map(lambda t: ("uniform", *t[0], t[1])),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.sampled_from(["f4", "f8"])).map(
        lambda t: ("multinomial", (np.arange(1, t[0] * t[1] + 1) % 7 + .5).reshape(t[:2])
                   .astype(t[2]))
    ),
)


def is_same(torch, ours, theirs):
    """Bit for bit; for normal numbers on a processor without AVX2, up to the last digits."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    return np.array_equal(ours, theirs)


@given(seed=SEEDS, calls=st.lists(CALLS, min_size=1, max_size=6))
def test_any_sequence_of_calls_agrees_with_pytorch(torch, seed, calls):
    random = TorchRandom(seed)
    torch.manual_seed(seed)
    for arguments in calls:
        assert is_same(torch, call(random, *arguments), in_torch(torch, *arguments)), arguments


@pytest.mark.parametrize("n", [16, 17, 31, 100_000, 1_000_003])
def test_many_normal_numbers_agree_with_pytorch(torch, n):
    torch.manual_seed(n)
    assert is_same(torch, TorchRandom(n).randn((n,)), torch.randn(n).numpy())


@pytest.mark.parametrize(("name", "arguments"), [
    ("rand", [(300_000,)]), ("randint", [2**28 - 1, (300_000,)]),
    ("uniform", [-0.3, 0.7, (300_000,)]),
    ("exponential", [(300_000,), "float32"]), ("exponential", [(300_000,), "float64"]),
    ("multinomial", [np.linspace(0.1, 1, 300_000).reshape(-1, 60)]),
    ("multinomial", [np.linspace(0.1, 1, 300_000).reshape(-1, 60).astype(np.float32)]),
])
def test_many_numbers_agree_with_pytorch(torch, name, arguments):
    torch.manual_seed(5)
    assert is_same(torch, call(TorchRandom(5), name, *arguments), in_torch(torch, name, *arguments))


def test_many_small_draws_of_normal_numbers_agree_with_pytorch(torch):
    random = TorchRandom(6)
    torch.manual_seed(6)
    for _ in range(3000):
        assert is_same(torch, random.randn((15,)), torch.randn(15).numpy())


@pytest.mark.parametrize("bias", [True, False])
def test_initial_linear_layers_agree_with_pytorch(torch, bias):
    random = TorchRandom(3)
    torch.manual_seed(3)
    for n_in in range(1, 200):
        w, b = random.linear(n_in, 5, bias)
        theirs = torch.nn.Linear(n_in, 5, bias)
        assert np.array_equal(w.T, theirs.weight.detach().numpy())
        assert np.array_equal(b, theirs.bias.detach().numpy()) if bias else b is None
