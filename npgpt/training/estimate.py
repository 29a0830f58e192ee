"""Estimates for a run: memory from its sizes, time from a trial step."""

import math
import time

from npgpt.errors import UserError
from npgpt.layers import Key
from npgpt.layers.linear_cross_entropy import LOGITS
from npgpt.models.llama import LlamaConfig
from npgpt.models.model import is_tiled
from npgpt.models.parameters import count
from npgpt.models.trained import trained

# Bytes that a forked process adds: BLAS's buffers, and copies of what it has from the first one,
# because counts of references to Python's objects change.
FORKED = 10 * 10**6
LESS_MEMORY = ("lower `batch_size` (and raise `grad_accum`), `block_size` or `n_embd`, or add "
               "`recompute`")


def table_of(model, training):
    """The configurations of a model and of its training -> name -> Param."""
    return trained(model, training.lora_rank, training.freeze)


def trainable(table):
    """name -> Param -> the number of parameters that are trained."""
    return count({name: param for name, param in table.items() if param.trainable})


def memory_of_run(arrays, device, forked=0):
    """Bytes of arrays that a run will make -> the bytes of all that it will have at its peak: with
    the text and the program, which are there by now, and with what as many forked processes add.
    On a GPU, of what is there."""
    return arrays + device.memory_in_use() + forked * FORKED


def memory_needed(model, training, device, ranks=1, *, separate=False):
    """The configurations of a model and of its training -> the peak memory of the arrays in bytes,
    to within about 10 %: of this number of computing ranks together, which share memory; or of one
    of them, if each has separate memory.

    AdamW's two moments and each rank's gradients have the size of the trained parameters. A rank
    with memory of its own has the moments of its shard only; the summed gradients of its shard
    arrive during the last backward, which frees activations. Most activations are in the caches,
    from forward to backward; they grow with the tokens of a batch. Recomputed blocks keep their
    input only, and one of them at a time all else. What the head needs, logits and its gradient, is
    freed before the blocks' backward. A block's gradients exist before they are added, in each
    rank. AdamW's temporaries exist only after all that is freed; they matter if a large model
    trains on a small batch.
    """
    C, V, L = model.n_embd, model.vocab_size, model.n_layer
    fused = device.fuses if training.fused is None else training.fused
    sizes = _of_llama if isinstance(model, LlamaConfig) else _of_gpt
    tiled = is_tiled(training.attention, model, device)
    start, block, passing = sizes(model, fused, tiled)
    rows = math.ceil(training.batch_size / ranks) if separate else training.batch_size
    tokens, together = rows * model.block_size, 1 if separate else ranks
    part = min(tokens, together * max(LOGITS // V, 1))  # tokens whose logits are in memory at once
    table = table_of(model, training)
    of_head = V * C * (1 if part == tokens else 2) if table[model.head].trainable else 0
    head = part * V + together * of_head + 2 * tokens * C
    passing *= tokens
    if training.recompute:
        activations = tokens * ((L - 1) * C + start) + max(head, tokens * block + passing)
    else:
        activations = tokens * (L * block + start) + max(head, passing)
    matrices = sum(math.prod(p.shape) for p in table.values()
                   if p.group == "matrix" and p.trainable)
    activations += together * matrices // model.n_layer
    changed = trainable(table)
    copies = count(table) + changed * (1 + 2 / ranks if separate else ranks + 2)
    received = changed // ranks if separate else 0
    offsets = 2 * training.batch_size * training.grad_accum
    updating = 2 * min(changed, device.chunk)
    size = 8 if training.dtype == "float64" else 4      # bytes of a number
    return int(size * (copies + max(activations, updating, received) + offsets))


def _of_gpt(model, fused, tiled):
    """-> numbers in memory for each token: in the caches before the blocks, in those of a block,
    and in temporaries of a block's backward. In tiles attention keeps one number for each head."""
    C, F, H = model.n_embd, model.inner, model.n_head
    row = H * model.block_size
    embedding, attending, residual = (        # masks: a byte for an element; kernels store none
        0.25 if rate and not fused else 0
        for rate in (model.embedding_dropout, model.attention_dropout, model.dropout))
    attention = row * (2 + attending if model.attention_dropout else 1)      # after dropout too
    mlp = F * (1 if model.activation == "relu" else 2 if fused else 3)
    backward = row * (2 if model.attention_dropout else 1) + 4 * C          # of attention
    if tiled:
        attention, backward = H - 2 * C, 4 * C          # the output is that of all heads already
    start = 10 + embedding * C                          # token ids are 8 bytes long
    return start, 10 * C + attention + mlp + 2 * residual * C, 5 * C + max(3 * F, backward)


def _of_llama(model, fused, tiled):
    """The same for a Llama. Its queries have Q channels, its keys and values K each."""
    C, F, H = model.n_embd, model.n_inner, model.n_head
    row = H * model.block_size
    Q, K = model.n_head * model.head_dim, model.n_kv_head * model.head_dim
    attending, residual = (0.25 if rate and not fused else 0
                           for rate in (model.attention_dropout, model.dropout))
    attention = row * (2 + attending if model.attention_dropout else 1)
    backward = row * (2 if model.attention_dropout else 1) + 4 * Q
    if tiled:
        attention, backward = H - 2 * Q, 4 * Q
    attention += 4 * Q + 3 * K + (Q + K if model.qk_norm else 0)
    start = 10 + residual * C
    return start, 4 * C + attention + 4 * F + 2 * residual * C, 4 * C + max(5 * F, backward)


def check_memory(needed, device, ranks=1):
    """Raise UserError if the device has less memory than `ranks` ranks need, each this number of
    bytes. What the ranks have by now is a part of it."""
    free = device.memory()
    if free is not None and ranks * needed > (available := free + ranks * device.memory_in_use()):
        raise UserError(f"training needs about {size(ranks * needed)} of memory and "
                        f"{size(available)} is available; {LESS_MEMORY}")


def step_seconds(model, data, rows, grads):
    """The seconds that the gradients of a batch of `rows` take, after one run to warm up. They are
    added to `grads`; nothing else changes."""
    idx, targets = data.batch(0, 0, rows)
    for _ in range(2):
        model.device.synchronize()
        start = time.perf_counter()
        model.loss_and_grads(idx, targets, Key(0, 0), into=grads)
    model.device.synchronize()
    return time.perf_counter() - start


def run_seconds(step_seconds, training, first_step=0, final_windows=0):
    """Seconds for the gradients of one batch, TrainingConfig -> seconds for the run from
    first_step on. final_windows: the number of windows of the final evaluation. A forward takes
    about a third of the time of forward and backward."""
    steps = training.max_iters - first_step
    evaluations = steps // training.eval_interval + 1
    forwards = evaluations * 2 * training.eval_iters + final_windows / training.batch_size
    return step_seconds * (steps * training.grad_accum + forwards / 3)


def step_time(seconds):
    """Seconds of a step as text: "31 ms", "1.2 s"."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(n):
    """Bytes as text: "48 MB"."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"


def duration(seconds):
    """Seconds as text: "2 min 10 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
