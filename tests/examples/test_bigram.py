"""The lecture's bigram model against what PyTorch prints."""

import os
import subprocess
import sys
from pathlib import Path

from examples import bigram
from npgpt.backend import get_device
from npgpt.lecture.torch_random import TorchRandom
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource

ROOT = Path(__file__).parents[2]
PRINTED = """\
step 0: train loss 4.7305, val loss 4.7241
step 300: train loss 2.8110, val loss 2.8249
step 600: train loss 2.5434, val loss 2.5682
step 900: train loss 2.4932, val loss 2.5088
step 1200: train loss 2.4863, val loss 2.5035
step 1500: train loss 2.4665, val loss 2.4921
step 1800: train loss 2.4683, val loss 2.4936
step 2100: train loss 2.4696, val loss 2.4846
step 2400: train loss 2.4638, val loss 2.4879
step 2700: train loss 2.4738, val loss 2.4911

"""     # by PyTorch 2.13, with the replay in torch_lecture.py, as below; the last line is token 0


def test_printed_losses_equal_those_of_pytorch(shakespeare, capsys):
    bigram.replay(3000)
    printed = capsys.readouterr().out
    assert printed.startswith(PRINTED)
    assert len(printed) == len(PRINTED) + 500 + len("\n")


def test_losses_and_text_equal_those_of_pytorch(torch, shakespeare, capsys):
    from tests.examples import torch_lecture

    torch.manual_seed(torch_lecture.SEED)
    theirs = torch_lecture.replay(torch_lecture.Bigram(65), shakespeare, 3000, bigram.B,
                                  bigram.LEARNING_RATE, eval_interval=300, eval_iters=200)
    bigram.replay(3000)
    assert capsys.readouterr().out == theirs


def test_first_rows_equal_those_of_the_lecture(shakespeare):
    data = Dataset(TokenSource.from_text(shakespeare), 8, get_device("cpu"))
    idx, targets = data.windows(data.train, TorchRandom(1337).randint(len(data.train) - 8, (4,)))
    assert idx.tolist() == [[24, 43, 58, 5, 57, 1, 46, 43], [44, 53, 56, 1, 58, 46, 39, 58],
                            [52, 58, 1, 58, 46, 39, 58, 1], [25, 17, 27, 10, 0, 21, 1, 54]]
    assert targets.tolist() == [[43, 58, 5, 57, 1, 46, 43, 39], [53, 56, 1, 58, 46, 39, 58, 1],
                                [58, 1, 58, 46, 39, 58, 1, 46], [17, 27, 10, 0, 21, 1, 54, 39]]
    assert data.tokenizer.encode("Let's he").tolist() == idx[0].tolist()


def test_command_runs_and_reports_a_missing_file_in_one_line(shakespeare, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "https_proxy": "http://127.0.0.1:9"}

    def run(where):
        return subprocess.run([sys.executable, str(ROOT / "examples/bigram.py"), "--steps", "1"],
                              cwd=where, env=environment, capture_output=True, text=True)

    result = run(ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(PRINTED.partition("\n")[0])
    result = run(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("bigram.py: data/tinyshakespeare.txt is missing")
    assert result.stderr.count("\n") == 1
