"""What a run begins with, in the ranks of a launcher: each rank in turn, in this process."""

import dataclasses

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints.run import RunDirectory
from npgpt.cli import options
from npgpt.parallel import Single
from npgpt.text import command as tokenizer_command
from npgpt.text.source import TokenSource, load_source
from npgpt.training import beginning, setup
from npgpt.training.request import read_command_line

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
WORDS = ["--data=fox.txt", "--out-dir=run"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text(TEXT)


def request(*words):
    return read_command_line([*WORDS, *words], lambda *_: "laptop")


def asked(monkeypatch, request, version=None):
    """-> what a rank with this request would tell the others."""
    told = []

    class Listening(Single):
        def exchange(self, value):
            told.append(value)
            return [value]

    with monkeypatch.context() as patch:
        patch.setattr(beginning, "world", Listening)
        if version:
            patch.setattr(beginning, "version", lambda: version)
        beginning.check_same(request)
    return told[0]


@pytest.mark.parametrize(("first", "other", "message"), [
    ([], ["--seed=7"], "`seed` is 7 in rank 2, and 1337 in rank 0; give all ranks the same "
                       "options"),
    (["--seed=7"], [], "`seed` is 1337 in rank 2, and 7 in rank 0; give all ranks the same "
                       "options"),
    ([], ["--out-dir=other"], "`out_dir` is other in rank 2, and run in rank 0; give all ranks "
                              "the same options"),
    ([], ["--config=finetune", "--seed=7"], "`config` is finetune in rank 2, and laptop in rank "
                                            "0; give all ranks the same options"),
    ([], ["--overwrite"], "`overwrite` is True in rank 2, and False in rank 0; give all ranks the "
                          "same options"),
    ([], ["--resume"], "`resume` is True in rank 2, and False in rank 0; give all ranks the same "
                       "options"),
])
def test_option_that_differs_is_named(first, other, message, world, monkeypatch):
    here = request(*first)
    world(0, 3, others=[asked(monkeypatch, request(*words)) for words in (first, other)])
    with pytest.raises(UserError) as error:
        beginning.check_same(here)
    assert error.value.message == message


def test_start_that_differs_is_named(world, monkeypatch):
    here, there = (request("--config=finetune", *words) for words in ([], ["--init-from=a"]))
    world(others=[asked(monkeypatch, there)])
    with pytest.raises(UserError) as error:
        beginning.check_same(here)
    assert error.value.message.startswith("`init_from` is a in rank 1, and None in rank 0;")


def test_version_that_differs_is_named_before_what_follows_from_it(world, monkeypatch):
    world(others=[asked(monkeypatch, request("--seed=7"), "npgpt 9")])
    with pytest.raises(UserError) as error:
        beginning.check_same(request())
    assert error.value.message == (f"rank 1 has npgpt 9, and rank 0 has {options.version()}; "
                                   "install the same version on every host")


def test_same_requests_pass(world, monkeypatch):
    told = asked(monkeypatch, request("--seed=7"))
    world(0, 3, others=[told, told])
    beginning.check_same(request("--seed=7"))


def test_only_the_first_rank_opens_and_locks_the_directory(world):
    world(0)
    first = beginning.open_directory(request())
    first.path.mkdir()
    world(1, told=[first.path])
    other = beginning.open_directory(request())
    assert type(other) is RunDirectory and other.path == first.path
    assert list(first.path.iterdir()) == []
    first.close()


def test_what_the_first_rank_keeps_is_none_in_others(world):
    world(0)
    assert beginning.in_first_rank(lambda: (1, 2)) == (1, 2)
    world(1, told=[1])
    assert beginning.in_first_rank(lambda: pytest.fail("not here")) == (1, None)


def test_ranks_get_a_text_in_memory_from_the_first_one(world, tmp_path):
    world(0, others=[None])
    first = beginning.load_data(request().training(), lambda: None)
    assert first.without_file() is first and first.path is None
    (tmp_path / "fox.txt").unlink()
    world(1, told=[first], others=[None])
    assert beginning.load_data(request().training(), lambda: pytest.fail("not here")) is first


@pytest.fixture
def tokens(capsys):
    """A token file, as in the first rank."""
    assert tokenizer_command.main(["encode", "fox.txt", "--tokenizer=chars", "--out-dir=tokens"]
                                  ) in (0, None)
    return load_source("tokens")


def test_ranks_map_the_token_file_that_they_find(tokens, world):
    told = tokens.without_file()
    assert told.ids is None
    world(1, told=[told], others=[None])
    found = beginning.load_data(request("--data=tokens").training(), None)
    assert found.is_mapped and found.ids is not tokens.ids
    np.testing.assert_array_equal(found.ids, tokens.ids)
    assert (found.name, found.fingerprint) == (tokens.name, tokens.fingerprint)


@pytest.mark.parametrize("change", ["another text", "another tokenizer", "missing"])
def test_token_file_of_another_text_is_refused_in_all_ranks(change, tokens, world, tmp_path):
    told = tokens.without_file()
    if change == "missing":
        (tmp_path / "tokens").rename(tmp_path / "gone")
        problem = "tokens/tokens.json"
    else:
        if change == "another text":
            told = dataclasses.replace(told, fingerprint="0" * 64)
        else:
            told = dataclasses.replace(told, tokenizer=TokenSource.from_text("abc" * 9).tokenizer)
        problem = "tokens has other tokens than the first rank's; copy the directory from there"
    world(1, 3, told=[told], others=[None, None])
    with pytest.raises(UserError) as error:
        beginning.load_data(request("--data=tokens").training(), None)
    assert error.value.message.startswith("rank 1 on ") and problem in error.value.message
    if change == "missing":
        (tmp_path / "gone").rename(tmp_path / "tokens")
    world(0, 3, others=[error.value.message, None])
    with pytest.raises(UserError) as again:
        beginning.load_data(request("--data=tokens").training(), lambda: None)
    assert again.value.message == error.value.message


def test_more_ranks_than_rows_are_refused(world):
    world(0, 3, others=[None, None])
    with pytest.raises(UserError) as error:
        setup.supported(request("--batch-size=2").training(), setup.get_device("cpu"),
                        request("--batch-size=2"))
    assert error.value.message == ("3 ranks need a `batch_size` of at least 3, because each "
                                   "computes some of its sequences, got 2")
    config = request("--batch-size=3").training()
    assert setup.supported(config, setup.get_device("cpu"), request("--batch-size=3")) == config


def test_workers_are_refused_under_a_launcher_unless_a_checkpoint_names_them(world):
    world()
    asking = request("--workers=2")
    with pytest.raises(UserError) as error:
        setup.supported(asking.training(), setup.get_device("cpu"), asking)
    assert error.value.message == ("`workers` is for one machine without a launcher, and here "
                                   "mpiexec has started the ranks; leave it out")
    resumed = dataclasses.replace(asking, resume=True, flags={})
    assert setup.supported(asking.training(), setup.get_device("cpu"), resumed).workers == 2


def test_token_file_of_characters_fits_a_request_for_characters(tokens):
    found = beginning.load_data(request("--data=tokens", "--tokenizer=chars").training(),
                                lambda: None)
    assert found.fingerprint == tokens.fingerprint


def test_model_to_start_from_that_is_damaged_is_refused(tmp_path):
    model = GPT(GPTConfig(28, 8, n_layer=1, n_head=1, n_embd=8))
    model.save_pretrained("m")
    path = tmp_path / "m/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        beginning.fine_tuned(tmp_path / "m", request())
