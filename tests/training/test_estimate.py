import dataclasses
import tracemalloc

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, Llama, UserError
from npgpt.backend import get_device
from npgpt.layers import Key
from npgpt.optim import AdamW
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.estimate import (
    FORKED,
    check_memory,
    duration,
    memory_needed,
    memory_of_run,
    run_seconds,
    size,
    step_seconds,
)
from npgpt.training.step import train_step
from tests import double

CPU = get_device("cpu")
SIZES = {"vocab_size": 65, "block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 128}


@pytest.mark.parametrize("options", [
    {}, {"dropout": 0.1}, {"activation": "relu"}, {"vocab_size": 2000}, {"block_size": 128},
    {"block_size": 4, "n_embd": 512},
    {"n_embd": 256, "n_layer": 1}, {"n_layer": 1, "n_head": 32, "n_embd": 32, "block_size": 256},
    {"n_layer": 1, "n_head": 32, "n_embd": 32, "block_size": 256, "dropout": 0.1},
    {"tie_weights": False, "n_head": 8}, {"n_inner": 2000}, {"n_inner": 8},
    {"n_layer": 1, "n_head": 32, "n_embd": 32, "block_size": 256, "attn_dropout": 0.1},
    {"n_layer": 1, "n_head": 32, "n_embd": 32, "block_size": 256, "dropout": 0.1,
     "attn_dropout": 0.0},
    {"n_layer": 1, "embd_dropout": 0.1, "n_inner": 1},
    {"n_layer": 1, "block_size": 1, "n_embd": 256, "n_inner": 8000},
])
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_estimated_memory_is_that_of_a_step(options, name):
    _compare(GPT, options, name)


@pytest.mark.parametrize("how", [{"attention": "tiled"}, {"recompute": True},
                                 {"attention": "tiled", "recompute": True}])
@pytest.mark.parametrize(("family", "options"), [
    (GPT, {"block_size": 512}), (GPT, {"block_size": 256, "n_head": 16, "dropout": 0.1}),
    (GPT, {"n_layer": 6, "vocab_size": 2000}),
    (Llama, {"block_size": 512}), (Llama, {"block_size": 256, "n_head": 16, "n_kv_head": 4}),
    (Llama, {"n_layer": 6, "vocab_size": 2000, "dropout": 0.1}),
])
def test_estimate_knows_tiles_and_recomputation(family, options, how):
    _compare(family, options, "cpu", **how)


@pytest.mark.parametrize("attention", ["plain", "tiled"])
def test_estimate_of_a_vocabulary_whose_logits_are_computed_in_parts(attention):
    _compare(GPT, {"vocab_size": 100_000, "n_layer": 1, "n_embd": 32}, "cpu", attention=attention)


@pytest.mark.parametrize("options", [
    {}, {"n_kv_head": 1}, {"dropout": 0.1}, {"vocab_size": 2000}, {"block_size": 128},
    {"block_size": 4, "n_embd": 512}, {"n_embd": 256, "n_layer": 1, "qk_norm": True},
    {"n_layer": 1, "n_head": 32, "n_embd": 64, "block_size": 256},
    {"n_layer": 1, "n_head": 32, "n_embd": 64, "block_size": 256, "dropout": 0.1},
    {"n_layer": 1, "n_head": 32, "n_embd": 64, "block_size": 256, "attn_dropout": 0.1},
    {"tie_weights": False, "n_head": 8, "n_kv_head": 2, "qk_norm": True},
    {"n_inner": 2000}, {"n_inner": 8}, {"head_dim": 64, "n_kv_head": 2},
    {"n_layer": 1, "block_size": 1, "n_embd": 256, "n_inner": 8000},
])
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_estimated_memory_is_that_of_a_step_of_a_llama(options, name):
    _compare(Llama, options, name)


# A large vocabulary shows what frozen tables save, and many parameters what adapters do.
FROZEN = [
    (GPT, {"vocab_size": 4000, "block_size": 8}, {"freeze": "embeddings"}),
    (GPT, {"vocab_size": 4000, "block_size": 8, "tie_weights": False}, {"freeze": "embeddings"}),
    (Llama, {"vocab_size": 4000, "block_size": 8}, {"freeze": "embeddings"}),
    (GPT, {"n_embd": 256, "block_size": 4}, {"lora_rank": 4}),
    (GPT, {"n_embd": 256, "block_size": 4}, {"lora_rank": 64}),
    (Llama, {"n_embd": 256, "block_size": 4}, {"lora_rank": 4}),
    (Llama, {"n_embd": 256, "block_size": 4, "n_kv_head": 1}, {"lora_rank": 32}),
]


@pytest.mark.parametrize(("family", "options", "how"), FROZEN)
def test_estimate_knows_what_is_frozen(family, options, how):
    _compare(family, options, "cpu", **how)
    model = family.Config(**SIZES | options)
    frozen, whole = (memory_needed(model, TrainingConfig(batch_size=8, **how), CPU)
                     for how in (how, {}))
    assert frozen < 0.7 * whole


@pytest.mark.parametrize("how", [{"lora_rank": 4}, {"freeze": "embeddings"}])
@pytest.mark.parametrize("family", [GPT, Llama])
def test_estimate_of_activations_that_are_larger_than_what_is_frozen(family, how):
    _compare(family, {"block_size": 128}, "cpu", **how)
    _compare(family, {}, "gpu", **how)
    _compare(family, {"n_layer": 6}, "cpu", recompute=True, **how)


def _compare(family, options, name, **how):
    """Measured: the peak of everything NumPy allocates, for the model and one step. The GPU is the
    double, whose arrays are NumPy's."""
    with double.installed() as gpu:
        device = gpu if name == "gpu" else CPU
        found, expected = _memory_of_a_step(family, options, device, how)
    assert expected == pytest.approx(found, rel=0.1)


def _memory_of_a_step(family, options, device, how):
    model = family.Config(**SIZES | options)
    training = TrainingConfig(batch_size=8, **how)
    rng = np.random.default_rng(0)
    idx, targets = rng.integers(65, size=(2, 8, model.block_size))
    tracemalloc.start()
    gpt = family(model, device=device, **how)
    optimizer, grads = AdamW(gpt.params), gpt.gradients()
    train_step(gpt, optimizer, [(idx, targets, Key(1, 1))], grads, lr=1e-3, grad_clip=1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, memory_needed(model, training, device)


def test_memory_grows_with_the_batch_and_not_with_accumulation():
    model = GPTConfig(vocab_size=65, block_size=64, n_layer=3, n_head=4, n_embd=128)
    small, large = (memory_needed(model, TrainingConfig(batch_size=n), CPU) for n in (8, 16))
    assert 1.3 * small < large < 2 * small
    many = memory_needed(model, TrainingConfig(batch_size=8, grad_accum=9), CPU)
    assert many == pytest.approx(small, rel=1e-3)


def test_too_little_memory_is_refused_and_the_message_names_options_to_lower():
    with pytest.raises(UserError, match=r"about 1e\+06 TB .* batch_size .* block_size"):
        check_memory(10**18, get_device("cpu"))
    check_memory(10**6, get_device("cpu"))


def test_what_the_ranks_have_by_now_is_a_part_of_what_they_need():
    device = dataclasses.replace(CPU, memory=lambda: 100, memory_in_use=lambda: 20)
    assert memory_of_run(70, device) == 90
    assert memory_of_run(70, device, forked=2) == 90 + 2 * FORKED
    check_memory(120, device)
    check_memory(70, device, 2)
    for needed, ranks, said in ((121, 1, "121 bytes"), (71, 2, "142 bytes")):
        with pytest.raises(UserError, match=f"needs about {said} of memory and 1[24]0 bytes is av"):
            check_memory(needed, device, ranks)
    check_memory(10**18, dataclasses.replace(device, memory=lambda: None))


def test_time_counts_steps_accumulation_and_evaluations():
    c = TrainingConfig(max_iters=100, grad_accum=3, eval_interval=50, eval_iters=6)
    assert run_seconds(2.0, c) == pytest.approx(2.0 * (300 + 3 * 2 * 6 / 3))
    assert run_seconds(2.0, c, first_step=60) == pytest.approx(2.0 * (120 + 1 * 2 * 6 / 3))


def test_trial_changes_nothing():
    gpt = GPT(GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4))
    before = gpt.params.flat.copy()
    data = Dataset(TokenSource.from_text("abc" * 50), 4, gpt.device)
    assert step_seconds(gpt, data, 5, gpt.gradients()) > 0
    np.testing.assert_array_equal(gpt.params.flat, before)


def test_sizes_and_durations_as_text():
    assert [size(n) for n in (0, 999, 1500, 54_500_000, 2.5e9, 3e12)] == [
        "0 bytes", "999 bytes", "1.5 KB", "54.5 MB", "2.5 GB", "3 TB"]
    assert [duration(s) for s in (0.4, 59.4, 61, 3725)] == ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]
