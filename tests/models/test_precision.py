"""Precision belongs to the model: two models of one process can differ."""

from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import UserError, layers
from npgpt.layers import Key
from npgpt.models.transformer import Transformer, TransformerConfig, teacher_forced
from tests import double
from tests.models.families import FAMILIES, tiny

every_family = pytest.mark.parametrize("name", FAMILIES)
IDS = np.random.default_rng(0).integers(3, 7, (2, 6))
MODES = {"float32": 0, "float64": 0, "tf32": 3, "bfloat16": 3}       # cuBLAS's


@pytest.fixture
def gpu(device):
    if device.xp is not double.cupy:
        pytest.skip("the double tells the mode that cuBLAS is in")
    double.cupy.MathMode.mode = 1                    # what something else in the process has set
    yield device
    double.cupy.MathMode.mode = 0


def watched(model):
    """-> the modes that cuBLAS is in whenever one of the model's linear layers computes."""
    seen, plain = [], model.layers

    def spy(name):
        def function(*arguments):
            seen.append(double.cupy.MathMode.mode)
            return getattr(plain, name)(*arguments)
        return function

    names = ("linear_forward", "linear_backward")
    model.layers = SimpleNamespace(**vars(plain) | {name: spy(name) for name in names})
    return seen


@every_family
@pytest.mark.parametrize("use", [
    lambda m: m.logits(IDS), lambda m: m.loss(IDS, IDS), lambda m: m.loss_and_grads(IDS, IDS),
    lambda m: m.generate(IDS[:, :2], 2, seed=0),
], ids=["logits", "loss", "loss_and_grads", "generate"])
def test_each_model_computes_in_its_own_precision_and_leaves_the_device_as_it_was(
        use, name, gpu):
    models = {dtype: tiny(name, device=gpu, dtype=dtype) for dtype in MODES}
    seen = {dtype: watched(model) for dtype, model in models.items()}
    for _ in range(2):
        for dtype, model in models.items():
            use(model)
            assert double.cupy.MathMode.mode == 1
            assert set(seen[dtype]) == {MODES[dtype]} and seen[dtype], dtype


def test_transformer_has_a_precision_too(gpu):
    model = Transformer(TransformerConfig(source_vocab_size=7, target_vocab_size=7, n_layer=1,
                                          n_head=2, n_embd=8), device=gpu, dtype="tf32")
    seen = watched(model)
    model.loss_and_grads(IDS, *teacher_forced(IDS))
    model.translate(IDS, 3)
    model.cross_attention(IDS, IDS)
    assert set(seen) == {3} and double.cupy.MathMode.mode == 1


def test_error_in_a_model_leaves_the_device_as_it_was(gpu):
    model = tiny("gpt", device=gpu, dtype="tf32")
    model.layers = SimpleNamespace(**vars(layers) | {"linear_forward": None})
    with pytest.raises(TypeError):
        model.logits(IDS)
    assert double.cupy.MathMode.mode == 1


@every_family
def test_precision_is_that_of_the_parameters_and_bfloat16_that_of_linear_layers_too(name, gpu):
    found = {dtype: tiny(name, device=gpu, dtype=dtype) for dtype in MODES}
    assert {dtype: model.params.flat.dtype.name for dtype, model in found.items()} == {
        "float32": "float32", "float64": "float64", "tf32": "float32", "bfloat16": "float32"}
    exact = gpu.to_host(found["float64"].logits(IDS))
    errors = {dtype: np.abs(gpu.to_host(model.logits(IDS)) - exact).max()
              for dtype, model in found.items()}
    assert errors["float32"] < 1e-6 < 1e-5 < errors["bfloat16"]
    assert found["float32"].layers is layers


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float64", "tf32", "bfloat16"])
def test_model_from_a_file_has_the_precision_that_is_asked_for(dtype, name, gpu, tmp_path):
    tiny(name).save_pretrained(tmp_path / "m")
    new = tiny(name, device=gpu, dtype=dtype)
    read = type(new).from_pretrained(tmp_path / "m", device=gpu, dtype=dtype)
    assert read.dtype == new.dtype == dtype
    np.testing.assert_array_equal(gpu.to_host(read.logits(IDS)), gpu.to_host(new.logits(IDS)))


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16", None])
def test_precision_that_a_cpu_does_not_have_is_refused(dtype):
    with pytest.raises(UserError, match="dtype must be one of float32, float64 on CPU"):
        tiny("gpt", dtype=dtype)


def watched_layers(model, monkeypatch):
    """-> layers with a matrix product, and the dtypes that each layer and exp get and return."""
    inside, products, dtypes = [], set(), {}

    def note(name, *values):
        for x in values:
            if isinstance(x, (tuple, list)):
                note(name, *x)
            elif hasattr(x, "dtype") and x.dtype.kind not in "iub":
                dtypes.setdefault(name, set()).add(x.dtype.name)

    def product(function):
        def call(*arguments, **options):
            products.add(inside[-1])
            return function(*arguments, **options)
        return call

    def layer(name, function, is_forward):
        def call(x, *rest, **options):
            note(name, x, rest if is_forward else ())
            inside.append(name)
            result = function(x, *rest, **options)
            inside.pop()
            note(name, result[0] if is_forward else result)
            return result
        return call

    def exp(x, plain=double.cupy.exp, **options):
        note("exp", x)
        return plain(x, **options)

    for owner, name in ((double.array.ndarray, "__matmul__"), (double.array.ndarray, "dot"),
                        (double.cupy, "matmul"), (double.cupy, "einsum")):
        monkeypatch.setattr(owner, name, product(getattr(owner, name)))
    monkeypatch.setattr(double.cupy, "exp", exp)
    records = {name: layers.Layer(layer(name, record.forward, True),
                                  layer(name, record.backward, False))
               for name, record in model.layers.LAYERS.items()}
    functions = {f"{name}_{way}": getattr(record, way)
                 for name, record in records.items() for way in ("forward", "backward")}
    model.layers = SimpleNamespace(**vars(model.layers) | functions | {"LAYERS": records})
    return products, dtypes


@pytest.mark.parametrize(("name", "options", "expected", "exact"), [
    ("gpt", {}, {"linear", "linear_cross_entropy", "attention", "embedding", "layernorm"},
     {"gelu", "layernorm"}),
    ("llama", {"qk_norm": True}, {"linear", "linear_cross_entropy", "attention", "embedding"},
     {"rmsnorm", "rope", "swiglu"}),
])
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_only_matrix_products_are_rounded(dtype, name, options, expected, exact, gpu, monkeypatch):
    """The rest gets and returns float32, the softmax too; and no norm of a Llama, no rotation and
    no activation contains a product, which tf32 would round."""
    model = tiny(name, device=gpu, dtype=dtype, dropout=0.2, **options)
    products, dtypes = watched_layers(model, monkeypatch)
    model.loss_and_grads(IDS, IDS, Key(1, 1))
    model.logits(IDS)
    assert products == expected
    assert exact | {"linear", "attention", "embedding", "dropout", "exp"} <= dtypes.keys()
    assert dtypes == {layer: {"float32"} for layer in dtypes}
