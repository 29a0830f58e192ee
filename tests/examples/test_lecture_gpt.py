"""The lecture's GPT, small, against what PyTorch prints.

In float64 all printed digits agree. In float32 the two diverge after about thirty steps, as PyTorch
diverges from itself in another precision: examples/README.md explains why.
"""

import numpy as np
import pytest

from examples import lecture_gpt
from npgpt import GPTConfig
from npgpt.lecture.torch_random import TorchRandom

PRINTED = """\
step 0: train loss 4.1979, val loss 4.1947
step 40: train loss 2.9485, val loss 3.0054
step 80: train loss 2.6886, val loss 2.6863
step 100: train loss 2.6287, val loss 2.6047

YOUHELUnC.

Tas imh IAEBDyk athe oos fotee ftimr y wsy tROLxy heerenof le prslesILTofUze d ker r
"""     # by PyTorch 2.13 in float64, with the replay in torch_lecture.py, as below


@pytest.fixture
def short(monkeypatch):
    """Shorter evaluations."""
    monkeypatch.setattr(lecture_gpt, "EVAL_INTERVAL", 40)
    monkeypatch.setattr(lecture_gpt, "EVAL_ITERS", 10)


def in_torch(torch, text, steps, dtype):
    from tests.examples import torch_lecture

    torch.manual_seed(torch_lecture.SEED)
    sizes = {name: value for name, value in lecture_gpt.SMALL.items() if name != "dropout"}
    model = torch_lecture.SmallGPT(65, **sizes).to(dtype)
    return torch_lecture.replay(model, text, steps, 16, 1e-3, eval_interval=40, eval_iters=10,
                                last=True)


def ours(capsys, steps, dtype):
    lecture_gpt.replay(lecture_gpt.SMALL, 16, 1e-3, steps, dtype=dtype)
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == "0.209729 M parameters"
    return rest


@pytest.mark.parametrize("sizes", [lecture_gpt.SMALL, {**lecture_gpt.SMALL, "n_head": 2}])
def test_initial_parameters_equal_those_of_pytorch_bit_for_bit(torch, sizes):
    from tests.examples import torch_lecture

    torch.manual_seed(1337)
    theirs = torch_lecture.SmallGPT(
        65, *(sizes[n] for n in ("block_size", "n_layer", "n_head", "n_embd")))
    random = TorchRandom(1337)
    config = GPTConfig(vocab_size=65, **sizes, **lecture_gpt.LECTURE)
    found = dict(lecture_gpt.initial_values(config, random))
    expected = torch_lecture.parameters(theirs)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert random.rand((1,)) == torch.rand(1).numpy()      # both streams are in step


def test_losses_and_text_equal_those_that_pytorch_printed(shakespeare, short, capsys):
    assert ours(capsys, 101, "float64").startswith(PRINTED)


def test_losses_and_text_equal_those_of_pytorch(
        torch, shakespeare, short, capsys):
    assert ours(capsys, 101, "float64") == in_torch(torch, shakespeare, 101, torch.float64)


def test_first_losses_in_float32_equal_those_of_pytorch(
        torch, shakespeare, short, capsys):
    def losses(printed):
        return printed.split("\n\n")[0]

    theirs = in_torch(torch, shakespeare, 15, torch.float32)
    assert losses(ours(capsys, 15, "float32")) == losses(theirs)
