"""Optimisation: the learning rate, gradient clipping, AdamW and Muon.

    lr    = learning_rate(step, config)     warm-up, a plateau, then decay
    scale = clip_scale(norm, grad_clip)     limits the norm of the gradients
    AdamW                                   Adam with decoupled weight decay
    Muon                                    for matrices: momentum, orthogonalised

Nothing here waits for the device. A step with non-finite gradients leaves the parameters unchanged.
"""

from npgpt.optim.adamw import AdamW
from npgpt.optim.clipping import clip_scale
from npgpt.optim.muon import Muon
from npgpt.optim.optimizer import Optimizer, OptimizerGroup
from npgpt.optim.schedule import learning_rate

__all__ = ["AdamW", "Muon", "Optimizer", "OptimizerGroup", "clip_scale", "learning_rate"]
