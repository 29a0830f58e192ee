"""What updates the parameters: the learning rate of a step, clipping, AdamW and Muon.

    lr    = learning_rate(step, config)     warm-up, a plateau, then decay
    scale = clip_scale(norm, grad_clip)     so that no batch changes them too much
    AdamW                                   the direction, from two running means
    Muon                                    for matrices: a running mean, made orthogonal

Nothing here waits for the device. A step whose gradients are not finite leaves the parameters as
they are.
"""

from npgpt.optim.adamw import AdamW
from npgpt.optim.clipping import clip_scale
from npgpt.optim.muon import Muon
from npgpt.optim.optimizer import Optimizer, OptimizerGroup
from npgpt.optim.schedule import learning_rate

__all__ = ["AdamW", "Muon", "Optimizer", "OptimizerGroup", "clip_scale", "learning_rate"]
