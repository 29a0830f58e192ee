"""`python -m npgpt explain` as the user types it."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.explain import command
from npgpt.explain.subjects import LARGEST, SUBJECTS
from npgpt.layers import LAYERS

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.endswith("_COLOR")},
    "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm",
}


def in_a_terminal(*words, **environment):
    """The output of a run that has a terminal."""
    outside, inside = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "npgpt", "explain", *words], stdout=inside,
                               stderr=inside, stdin=inside, env=ENVIRONMENT | environment)
    os.close(inside)
    output = b""
    while True:
        try:
            part = os.read(outside, 65536)
        except OSError:          # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(outside)
    assert process.wait() == 0
    return output.decode().replace("\r\n", "\n")


def test_without_a_name_every_subject_is_listed(capsys):
    assert command.main([]) == 0
    listed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in listed] == list(SUBJECTS)
    assert all(len(line.split()) > 4 for line in listed)


def test_keys_are_shared_only_if_asked_for(capsys):
    assert command.main(["attention", "--shape=H=3"]) == 0
    assert "B=1, H=3, G=3, Tq=3, Tk=3, D=4" in capsys.readouterr().out
    assert command.main(["attention", "--shape=G=1"]) == 0
    shown = capsys.readouterr().out
    assert "q (1, 2, 3, 4)" in shown and "k (1, 1, 3, 4)" in shown and "dk (1, 1, 3, 4)" in shown


def test_every_layer_has_a_subject():
    missing = [name for name in LAYERS if name not in SUBJECTS]
    assert not missing, f"add to SUBJECTS in npgpt/explain/subjects.py: {', '.join(missing)}"
    assert SUBJECTS.keys() - LAYERS.keys() == {"block", "gpt", "gated_mlp", "grouped_attention",
                                               "llama_block"}


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_is_explained_and_correct(name, capsys):
    assert command.main([name]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "\x1b" not in shown.out
    assert shown.out.count("✗") == 0 and "✓ Every gradient is right." in shown.out


def test_terminal_has_colours_unless_NO_COLOR_is_set():
    coloured, plain = in_a_terminal("relu"), in_a_terminal("relu", NO_COLOR="1")
    assert "\x1b[" in coloured and "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_closed_pipe_is_not_an_error():
    result = subprocess.run(f"{sys.executable} -m npgpt explain attention | head -n 2", shell=True,
                            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (result.stderr, result.stdout.count("\n")) == ("", 2)


def test_interrupt_ends_with_status_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "explain", interrupted)
    assert command.main(["linear"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("words", "message"), [
    (["layrnorm"], f"LAYER must be one of {', '.join(SUBJECTS)}, got 'layrnorm'; "
                   "did you mean 'layernorm'?"),
    ([""], f"LAYER must be one of {', '.join(SUBJECTS)}, got ''"),
    (["linear", "relu"], "unexpected argument 'relu'; --help lists all options"),
    (["linear", "--sed=1"],
     "unknown option --sed; did you mean --seed? --help lists all options"),
    (["linear", "--seed=-1"], "--seed must be at least 0, got -1"),
    (["linear", "--seed=x"], "--seed must be a whole number, got 'x'"),
    (["linear", "--shape=X=2"],
     "--shape takes the sizes B, T, I, O here, got 'X'; give them as B=2,T=3"),
    (["linear", "--shape="], "--shape takes sizes as B=2,T=3, got ''"),
    (["linear", "--shape=B"], "--shape takes sizes as B=2,T=3, got 'B'"),
    (["linear", "--shape=B=2,"], "--shape takes sizes as B=2,T=3, got ''"),
    (["linear", "--shape=B="], "B in --shape must be a whole number from 1 to 8, got ''"),
    (["linear", "--shape=B=0"], "B in --shape must be a whole number from 1 to 8, got '0'"),
    (["linear", "--shape=B=9"], "B in --shape must be a whole number from 1 to 8, got '9'"),
    (["linear", "--shape=B=2.5"], "B in --shape must be a whole number from 1 to 8, got '2.5'"),
    (["linear", "--shape=B=²"], "B in --shape must be a whole number from 1 to 8, got '²'"),
    (["linear", "--shape=B=2,B=3"], "B is twice in --shape, got 'B=2,B=3'; give it once"),
    (["attention", "--shape=Tq=4"], "Tk must be at least Tq=4, got 3; add Tk=4 to --shape"),
    (["attention", "--shape=H=4,G=3"], "H must be a multiple of G=3, got 4; give G=1 in --shape"),
    (["llama_block", "--shape=G=4"], "H must be a multiple of G=4, got 2; give G=2 in --shape"),
    (["rope", "--shape=D=7"], "D must be even, because RoPE rotates pairs of channels, got 7; "
                              "give D=8 in --shape"),
    (["grouped_attention", "--shape=D=1"], "D must be even, because RoPE rotates pairs of "
                                           "channels, got 1; give D=2 in --shape"),
    (["positional", "--shape=T=6"], "P must be at least T=6, got 5; add P=6 to --shape"),
    (["block", "--shape=C=5"], "C must be a multiple of H=2, got 5; give C=4 in --shape"),
    (["gpt", "--shape=H=3"], "C must be a multiple of H=3, got 4; give C=3 in --shape"),
    (["block", "--shape=H=5"], "C must be a multiple of H=5, got 4; give C=5 in --shape"),
    (["attention", "--shape=B=8,H=8,Tq=8,Tk=8,D=8"],
     "the inputs must have at most 2000 numbers in all, got 12288; give smaller sizes in --shape"),
    (["linear", "--html=page.txt"], "--html must end in .html, got 'page.txt'"),
    (["linear", "--html="], "--html must end in .html, got ''"),
    (["linear", "--html=no/page.html"],
     "the directory of --html does not exist: no; create it with: mkdir -p no"),
    (["linear", "--html=folder.html"],
     "--html must be a file, and folder.html is a directory; give another name"),
])
def test_invalid_input_gives_one_line_and_status_2_and_writes_nothing(words, message, tmp_path,
                                                                      monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    assert command.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err == f"npgpt explain: {message}\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.html"]


@pytest.mark.parametrize(("words", "named"), [
    (["linear", "relu"], ["'relu'"]), (["linear", "--sed=1"], ["--sed;", "--seed?"]),
    (["linear", "--seed=-1"], ["seed must be ", "-1"]), (["linear", "--seed=x"], ["seed must be "]),
])
def test_wrong_argument_is_named_in_one_line_with_status_2(words, named, capsys):
    assert command.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert all(part in shown.err for part in named)


def test_help_shows_what_each_option_takes(capsys):
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--seed N" in shown and "--shape SIZES" in shown and "--html FILE" in shown


def test_page_is_written_atomically_and_replaces_an_older_one(tmp_path, capsys):
    target = tmp_path / "page.html"
    target.write_text("older")
    assert command.main(["linear", "--html", str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [target]


def test_failed_write_of_a_page_gives_one_line_and_status_3(tmp_path, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(command, "write_text", full)
    assert command.main(["linear", f"--html={tmp_path / 'page.html'}"]) == 3
    assert capsys.readouterr().err.endswith("page.html: No space left on device\n")


@pytest.mark.parametrize("words", [[], ["--html=page.html"]])
def test_wrong_backward_is_shown_with_a_cross_and_ends_with_status_3(
        words, edited_layernorm, tmp_path, monkeypatch, capsys):
    edited_layernorm("    dx -= xhat * mean_dxhat_xhat[..., None]\n", "")
    monkeypatch.chdir(tmp_path)
    assert command.main(["layernorm", *words]) == 3
    shown = capsys.readouterr()
    where = "page.html" if words else "the end of the text"
    assert shown.err == ("npgpt explain: the backward of layernorm is not the derivative of its "
                         f"forward; {where} shows which gradients are wrong\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8") if words else shown.out
    assert "✗ The backward is not the derivative of the forward: dx." in text
    assert "    dx *= rstd" in text and "dx -= xhat" not in text


@pytest.mark.parametrize(("name", "shape"), [
    ("attention", "B=2,H=1,Tq=1,Tk=4,D=1"), ("linear", "B=1,T=1,I=1,O=1"), ("layernorm", "C=1"),
    ("layernorm", "C=2"), ("embedding", "B=1,T=1,V=1,C=1"), ("cross_entropy", "B=1,T=1,V=1"),
    ("gpt", "B=2,T=1,C=2,H=1,V=1,L=1"), ("block", "B=1,T=1,C=1,H=1"), ("dropout", "B=8,T=8,C=8"),
    ("attention", "H=3,G=1"), ("attention", "H=4,G=2"), ("rmsnorm", "C=1"), ("rope", "T=1,D=2"),
    ("rope", "T=8,D=8"), ("swiglu", "T=1,F=1"), ("gated_mlp", "T=1,C=1,F=1"),
    ("grouped_attention", "H=4,G=2,T=1,C=4,D=2"), ("llama_block", "H=1,G=1,T=1,C=2,D=2,F=1"),
    ("relu", "T=1,C=1"), ("gelu", f"T={LARGEST},C={LARGEST}"), ("positional", "T=1,P=1"),
])
def test_smallest_and_largest_sizes_are_shown_and_correct(name, shape, tmp_path, capsys):
    assert command.main([name, "--shape", shape, "--seed=7"]) == 0
    head = capsys.readouterr().out.splitlines()[1]
    assert all(part in head for part in shape.split(","))
    assert command.main([name, "--shape", shape, "--html", str(tmp_path / "p.html")]) == 0
