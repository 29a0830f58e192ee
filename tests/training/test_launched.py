"""The run of a rank of a launcher: each rank in turn, in this process."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import train
from npgpt import GPT, GPTConfig
from npgpt.optim import AdamW
from npgpt.parallel import Single
from npgpt.text import source
from npgpt.training import beginning, estimate, setup
from npgpt.training.header import header
from npgpt.training.request import read_command_line
from npgpt.training.run import restore, save
from tests.training.rank import Rank
from tests.training.two_ranks import TwoRanks

WORDS = ["--data=fox.txt", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8",
         "--batch-size=2", "--eval-iters=1", "--device=cpu", "--out-dir=run"]
TINY = GPTConfig(28, 8, n_layer=1, n_head=1, n_embd=8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)


def request(*words):
    return read_command_line(words, lambda *_: "laptop")


def test_large_text_is_encoded_with_a_bar(monkeypatch):
    seen = []

    class Bar:
        def __enter__(self):
            return lambda text, done, total: seen.append((done, total))

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(source, "LARGE", 10)
    monkeypatch.setattr(beginning, "Bar", Bar)
    assert beginning.load_data(request(*WORDS).training(), lambda: None).is_mapped
    done, total = seen[-1]
    assert done == total > 0


def test_ranks_begin_with_the_parameters_of_the_first_one(world):
    seen = []
    rank = world()
    rank.same = seen.append
    rank.ranges = lambda params: [slice(0, params.n_trainable)]
    model = GPT(TINY)
    setup.distribute(model, request(*WORDS).training(), rank)
    assert len(seen) == 1 and seen[0] is model.params.flat


@pytest.mark.parametrize(("name", "times"), [("cpu", 2), ("other", 1)])
def test_memory_is_that_of_the_ranks_of_this_machine(name, times, world, monkeypatch):
    rank, seen = world(0, 3), []
    rank.local_size = 2
    device = dataclasses.replace(setup.get_device("cpu"), name=name, memory_in_use=lambda: 10**7)
    ranks_on = {device.name: rank}               # device -> its communicator
    monkeypatch.setattr(setup, "world_on", lambda device: ranks_on[device.name])
    monkeypatch.setattr(estimate, "check_memory", lambda *given: seen.append(given))
    training = request(*WORDS).training()
    comm, memory = setup.build_communicator(training, TINY, device)
    assert comm is rank
    assert memory == 10**7 + estimate.memory_needed(TINY, training, device, 3, separate=True)
    assert seen == [(memory, device, times)]


@pytest.mark.parametrize("separate", [False, True])
def test_header_has_the_memory_of_all_ranks_or_of_one_if_each_has_its_own(separate):
    run = setup.build_run(request(*WORDS, "--workers=1"))
    run.comm, run.memory = Rank(0, 2), 12_000_000
    run.comm.computing, run.comm.shares_memory = 2, not separate
    assert header(run, 0.0)["memory"] == "about 12 MB" + " in each rank" * separate


def test_only_the_first_rank_reads_the_state_of_a_checkpoint(tmp_path):
    loaded = []
    optimizer = SimpleNamespace(whole_state={}, load_state=lambda *given: loaded.append(given))
    run = SimpleNamespace(optimizer=optimizer, comm=Rank(1))
    state = {"step": 5, "seconds": 1.0, "best_val_loss": 2.0}
    assert restore(run, state, tmp_path / "not here") is run
    assert loaded == [(None, 5)] and run.step == 5


@pytest.mark.parametrize("words", [[], ["--family=llama"]], ids=["gpt", "llama"])
def test_resumed_run_is_the_same_in_every_rank(words, world, monkeypatch, tmp_path):
    run = setup.build_run(request(*WORDS, *words, "--dtype=float64", "--workers=1"))
    run.directory.begin(0)
    run.step = 5
    for number, array in enumerate(run.optimizer.state.values(), 1):
        array[...] = number
    save(run, val_loss=2.5)
    run.directory.close()

    monkeypatch.setattr(setup, "world_on", lambda device: setup.world())
    rank = world(0)
    first = setup.build_run(request("--resume", "--out-dir=run"))
    first.directory.close()
    (tmp_path / "run").rename(tmp_path / "on another machine")

    rank = world(1, told=rank.said)
    other = setup.build_run(request("--resume", "--out-dir=run"))
    assert type(other.model) is type(first.model) and other.model.config == run.model.config
    assert other.model.dtype == first.model.dtype == "float64"
    assert (other.step, other.config) == (5, first.config)
    np.testing.assert_array_equal(other.model.params.flat, run.model.params.flat)
    assert [set(array) for array in other.optimizer.state.values()] == [
        {number} for number in range(1, len(run.optimizer.state) + 1)]
    assert next(rank.told, None) is None         # it takes all that the first rank has sent


def test_rank_updates_its_part_of_each_range_of_the_communicator():
    run = setup.build_run(request(*WORDS, "--max-iters=1", "--workers=1", "--optimizer=adamw"))
    half = run.model.params.n_trainable // 2
    ranges = [slice(0, half), slice(half, run.model.params.n_trainable)]

    class Ranges(TwoRanks):
        def ranges(self, params):
            return ranges if params is run.model.params else None

    run.comm = Ranges()
    assert train.train(run) == 0
    run.directory.close()
    expected = AdamW(run.model.params)
    expected.set_rank(0, 2, ranges)
    assert run.optimizer.shards == expected.shards and run.optimizer.shard == expected.shards[0]


def test_ranks_know_the_name_of_the_command(monkeypatch, capsys):
    """For what they say if one of them ends early."""
    names = []

    class Named(Single):
        def run(self, name, command):
            names.append(name)
            return command()

    monkeypatch.setattr(train, "world", Named)
    assert train.main(["--help"]) == 0 and capsys.readouterr().out.startswith("usage: train.py")
    assert names == ["train.py"]
