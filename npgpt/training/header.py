"""The header of a run's output."""

import math

from npgpt.training import estimate
from npgpt.training.step import tokens_in_step


def trial_seconds(run, grads):
    """How long the gradients of a batch take this rank. They are added to grads."""
    start, stop = run.comm.rows(run.config.batch_size)
    if not run.comm.computes:
        return 0.0
    return estimate.step_seconds(run.model, run.data, stop - start, grads)


def header(run, trial):
    """name -> text. trial: seconds that the gradients of a batch take."""
    model, c, comm, device = run.model, run.config, run.comm, run.model.device
    m, tokens = model.config, tokens_in_step(run.config, run.data.block_size)
    final_windows = min(run.data.count(run.data.val), c.final_windows or math.inf)
    left = estimate.run_seconds(trial, c, run.step, final_windows)
    size, trained = model.params.flat.size, model.params.n_trainable
    parameters = f"{size:,} parameters" + (f", {trained:,} of them trained" * (trained < size))
    steps, left = c.max_iters - run.step, estimate.duration(left)
    least = "at least" if c.optimizer == "muon" else "about"       # the trial is without the update
    notes = [*run.notes, *([run.source.note] if run.source.note else [])]
    return ({"note": "; ".join(notes)} if notes else {}) | {
        "npgpt": f"config {run.config_name} on {device.description}, {model.dtype}"
                 + (comm.description and f", {comm.description}"),
        "data": f"{run.source.name}: {run.source.summary}",
        "sha256": run.source.fingerprint,
        "model": f"{parameters}: layers {m.n_layer}, heads {m.n_head}, "
                 f"channels {m.n_embd}, context {m.block_size}",
        "memory": f"about {estimate.size(run.memory)}"
                  + ("" if comm.shares_memory else " in each rank"),
        "time": f"{least} {left} for {steps:,} step{'' if steps == 1 else 's'} of "
                f"{tokens:,} tokens, {estimate.step_time(trial * c.grad_accum)} each",
        "writes": str(run.directory.path),
    }
