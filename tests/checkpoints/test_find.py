"""Which model an option names. The commands' tests have runs and model directories."""

import sys
from types import SimpleNamespace

import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints.find import find_model
from npgpt.checkpoints.hub import FILES
from npgpt.checkpoints.run import RunDirectory


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """huggingface_hub without a network -> the names that were asked for."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("Repository not found\nfor url ...")
        return str(tmp_path / "cached")

    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.chdir(tmp_path)
    return asked


def test_name_on_hugging_face_is_downloaded(hub, tmp_path):
    assert find_model("someone/Some.model-1") == tmp_path / "cached"
    assert hub == [("someone/Some.model-1", FILES)]


def test_what_is_here_is_not_downloaded(hub, tmp_path):
    GPT(GPTConfig(5, 4, 1, 1, 4)).save_pretrained(tmp_path / "models/mine")
    (tmp_path / "models/empty").mkdir()
    (tmp_path / "models/a.gguf").touch()
    assert str(find_model("models/mine")) == "models/mine"
    assert str(find_model("models/a.gguf")) == "models/a.gguf"
    with pytest.raises(UserError, match="models/empty contains no checkpoint"):
        find_model("models/empty")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="there is no directory out/laptop"):
        find_model("out/laptop")
    assert hub == []


def test_directory_with_a_gguf_file_alone_names_it(hub, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.gguf").touch()
    with pytest.raises(UserError, match=r"models has no model\.safetensors, but a\.gguf; give the"):
        find_model("models")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./b", "/b", "a b/c", "a/", "owner/m.gguf",
                                  "here/not"])
def test_what_cannot_be_such_a_name_is_a_missing_directory(name, hub, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=r"there is no directory .*; model takes that of a run or "):
        find_model(name)
    assert hub == []


def test_failed_download_says_both_things(hub):
    with pytest.raises(UserError) as error:
        find_model("nobody/nothing", "init_from")
    assert error.value.message == (
        "there is no directory nobody/nothing; `init_from` takes that of a run or of a model, and "
        "nobody/nothing cannot be downloaded from Hugging Face: Repository not found for url ...")


def test_reason_without_words_is_named_by_its_kind(hub, monkeypatch):
    def fail(name, allow_patterns):
        raise TimeoutError

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded from Hugging Face: TimeoutError$"):
        find_model("nobody/nothing")


def test_without_the_package_the_message_says_how_to_install_it(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"Hugging Face, first run: pip install 'npgpt\[hub\]'"):
        find_model("someone/laptop")


def test_empty_name_is_refused(hub):
    with pytest.raises(UserError, match="init_from is empty; it takes the path of a directory"):
        find_model("", "init_from")


def test_name_that_no_file_can_have_is_a_missing_directory(hub):
    with pytest.raises(UserError, match=r"there is no directory a{60}\.\.\.; the name is too long"):
        find_model("a" * 256)
    with pytest.raises(UserError, match=r"there is no directory a{255}; model takes"):
        find_model("a" * 255)


def test_without_a_name_it_is_the_best_checkpoint_of_the_newest_run(monkeypatch):
    asked = []
    monkeypatch.setattr(RunDirectory, "existing", lambda *given: asked.append(given) or
                        SimpleNamespace(checkpoint=lambda which: f"checkpoint {which}"))
    assert find_model(None, "init_from") == "checkpoint best"
    assert asked == [(None, "init_from")]
