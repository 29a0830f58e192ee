"""The learning rate of each step."""

import math


def learning_rate(step, config):
    """The learning rate of a step, counted from 0. It rises linearly for warmup_iters steps, stays
    at its peak until the fraction `hold` of lr_decay_iters, decays along a cosine (Loshchilov and
    Hutter 2017) or a line to min_lr at lr_decay_iters, and stays there."""
    peak, floor = config.learning_rate, config.min_lr
    start = max(config.warmup_iters, config.hold * config.lr_decay_iters)
    if step < config.warmup_iters:
        return peak * (step + 1) / (config.warmup_iters + 1)
    if step >= config.lr_decay_iters:
        return floor
    if step < start:
        return peak
    done = (step - start) / (config.lr_decay_iters - start)
    fallen = done if config.decay == "linear" else (1 - math.cos(math.pi * done)) / 2
    return peak + (floor - peak) * fallen
