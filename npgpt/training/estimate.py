"""What a run will need: memory from the sizes, time from a trial step."""

import time

from npgpt.errors import UserError
from npgpt.layers import Key
from npgpt.models.parameters import count

LESS_MEMORY = "lower `batch_size` (and raise `grad_accum`), `block_size` or `n_embd`"


def memory_needed(model, training, device, ranks=1):
    """GPTConfig, TrainingConfig -> the peak memory in bytes of that many ranks that compute,
    together, to about a tenth.

    Parameters, AdamW's two means and each rank's gradients are as long as each other. Most
    activations are what the caches keep from forward to backward; they grow with the tokens of a
    batch. The head's part, probabilities and their gradient, is freed before the blocks' backward
    begins. A block's gradients, 12 C² in all, exist before they are added, in each rank. AdamW's
    own arrays come when all that is gone, and count if a large model learns from a small batch.
    """
    C, T, V = model.n_embd, model.block_size, model.vocab_size
    row = model.n_head * T                              # of attention, for each token
    attention = row * (2.25 if model.dropout else 1)    # dropped too, and a byte for the mask
    mlp = 4 * C * (3 if model.activation == "gelu" else 1)
    block = 10 * C + attention + mlp + (0.5 * C if model.dropout else 0)
    head = 2 * V + 2 * C                                # probabilities and their gradient
    attending = row * (2 if model.dropout else 1) + 4 * C
    passing = 8 * C + max(12 * C, attending)            # what a block's backward makes and drops
    ids = 10                                            # token ids are 8 bytes long
    tokens = training.batch_size * T
    activations = tokens * (model.n_layer * block + max(head, passing) + ids) + ranks * 12 * C * C
    parameters = count(model.architecture())
    offsets = 2 * training.batch_size * training.grad_accum
    updating = 3 * min(parameters, device.chunk)
    size = 8 if training.dtype == "float64" else 4      # bytes of a number
    return int(size * ((3 + ranks) * parameters + max(activations, updating) + offsets))


def check_memory(needed, device):
    """Raise UserError if the device has less free memory than is needed."""
    available = device.memory()
    if available is not None and needed > available:
        raise UserError(
            f"training needs about {size(needed)} of memory and {size(available)} is free; "
            f"{LESS_MEMORY}"
        )


def step_seconds(model, data, rows, grads):
    """How long the gradients of a batch of `rows` take: once to warm up, once with the clock
    running. They are added to `grads`; nothing else changes."""
    idx, targets = data.batch(0, 0, rows)
    for _ in range(2):
        model.device.synchronize()
        start = time.perf_counter()
        model.loss_and_grads(idx, targets, Key(0, 0), into=grads)
    model.device.synchronize()
    return time.perf_counter() - start


def run_seconds(step_seconds, training, first_step=0):
    """Seconds for the gradients of one batch, TrainingConfig -> seconds for the run from
    first_step. A forward alone takes about a third of forward and backward."""
    steps = training.max_iters - first_step
    evaluations = steps // training.eval_interval + 1
    batches = steps * training.grad_accum + evaluations * 2 * training.eval_iters / 3
    return step_seconds * batches


def size(n):
    """Bytes, for a person: "48 MB"."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"


def duration(seconds):
    """Seconds, for a person: "2 min 10 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
