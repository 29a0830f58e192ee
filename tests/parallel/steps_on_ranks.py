"""Run under mpiexec by test_mpi.py: every rank trains together with the others and, for comparison,
alone, and asserts that both end with the same parameters and state. The buckets are tiny, so that
there are many."""

import sys
from itertools import pairwise

import numpy as np

from npgpt.parallel import Single, buckets, world
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step
from tests.models.adapted import adapted
from tests.models.families import tiny

STEPS, OF_ADAPTERS = 10, 4      # with Muon, rounding grows tenfold with each step of adapters
CLOSE = {"adamw": 1e-10, "muon": 1e-7}      # Muon divides by singular values, which may be small


def built(name, seed, options):
    """-> a tiny model. options: of its configuration, or the rank of its adapters."""
    if "rank" in options:
        return adapted(name, {"vocab_size": 7, "dropout": 0.2}, seed=seed, **options)
    return tiny(name, "float64", seed, vocab_size=7, dropout=0.2, **options)


def trained(comm, name, config, options):
    """-> losses, norms, the model and its optimiser."""
    model = built(name, 1 + comm.rank, options)
    data = Dataset(TokenSource.from_text("abcdefg" * 40), model.config.block_size)
    if comm.size == 1:
        model.params.flat[...] = built(name, 1, options).params.flat
    optimizer, buffers = distribute(model, config, comm)
    grads = model.gradients(buffers[comm.rank])
    steps = OF_ADAPTERS if model.lora_rank else STEPS
    found = [train_step(model, optimizer, batches_of_step(data, config, step, comm), grads, comm,
                        lr=1e-2, grad_clip=0.5) for step in range(steps)]
    return np.array(found), model, optimizer


def main():
    comm = world()
    buckets.SIZE = 100
    for name, options in (("gpt", {"n_layer": 3, "tie_weights": False}),
                          ("gpt", {"head_bias": True}), ("llama", {"qk_norm": True}),
                          ("llama", {"rank": 2}), ("gpt", {"rank": 0, "freeze": "embeddings"})):
        for optimizer in ("adamw", "muon"):
            config = TrainingConfig(batch_size=5, grad_accum=2, optimizer=optimizer, seed=3)
            found, model, state = trained(comm, name, config, options)
            expected, alone, whole = trained(Single(), name, config, options)
            np.testing.assert_allclose(found, expected, rtol=CLOSE[optimizer])
            np.testing.assert_allclose(model.params.flat, alone.params.flat, rtol=0,
                                       atol=CLOSE[optimizer])
            held = 0
            for key, (shape, array, slices) in sorted(state.whole_state.items()):
                parts = list(comm.collect(array, slices))
                held += array.size
                assert array.size == sum(s.stop - s.start for s in slices[comm.rank])
                if comm.is_first:
                    joined = np.concatenate(parts or [[]])       # AdamW's, if Muon updates all
                    np.testing.assert_allclose(joined, whole.state[key], rtol=0,
                                               atol=CLOSE[optimizer])
                    assert joined.shape == shape
            everything = sum(array.size for array in whole.state.values())
            assert sum(comm.exchange(held)) == everything        # nothing is there twice
            restored = {key: value * 2 for key, value in whole.state.items()}
            state.load_state(restored if comm.is_first else None, 7)
            for key, (_, array, slices) in state.whole_state.items():
                own = np.concatenate([restored[key][s] for s in slices[comm.rank]] or [[]])
                np.testing.assert_array_equal(array, own)
    check_small_things(comm)
    sys.stderr.write(f"rank {comm.rank} of {comm.size}: the same\n")


def check_small_things(comm):
    """Flags, sums and messages."""
    total = sum(0.1 * 3.0**rank for rank in range(comm.size))
    assert abs(comm.all_reduce(0.1 * 3.0**comm.rank) - total) < 1e-12
    assert comm.all_reduce(1) == comm.size
    assert comm.exchange(comm.rank) == list(range(comm.size))
    assert comm.broadcast(lambda: comm.rank) == 0
    seen = []
    for turn in range(6):
        seen.append(comm.any(comm.rank == comm.size - 1 and turn == 3))
    assert seen == [False] * 4 + [True, False]
    rows = comm.exchange(comm.rows(7))
    assert rows[0][0] == 0 and rows[-1][1] == 7
    assert all(one[1] == other[0] for one, other in pairwise(rows))


if __name__ == "__main__":
    world().run("steps", main)
