"""npgpt's optimiser in PyTorch: Muon for the blocks' matrices, AdamW for all other parameters.

Muon's formula is npgpt's, in the parameters' own precision (weights here are (O, I)):

    m  = β m + (1 - β) g
    u  = orthogonal((1 - β) g + β m)
    w -= rate * (weight_decay * w  +  √max(1, O/I) u)

torch.optim.Muon has the same formula but computes `orthogonal` in bfloat16. It can be used instead
of `Muon`. Matrices of the same shape are stacked for batched products, which are faster on two
cores than one matrix after another. npgpt never imports this.
"""

import itertools
import math
from collections import defaultdict

import torch


class MuonAndAdamW:
    """A TorchGPT -> the optimiser of its parameters.

    The weight of c_attn contains the three matrices of queries, keys and values; Muon gets each as
    a separate parameter. The weights of TorchGPT are (I, O), so Muon's parameters are transposed
    views of them.
    """

    def __init__(self, gpt, *, betas, momentum, weight_decay, relative_rate, muon=None):
        """relative_rate: Muon's rate as a multiple of AdamW's. muon: its class (default: Muon)."""
        self.relative_rate = relative_rate
        named, architecture = dict(gpt.named_parameters()), gpt.config.architecture()
        matrices = [name for name, param in architecture.items() if param.group == "matrix"]
        self.views = [
            (weight, part, torch.nn.Parameter(weight.detach()[:, part].t()))
            for weight, part in ((named[name], part) for name in matrices
                                 for part in _parts(architecture[name].widths))
        ]
        rest = [p for name, p in named.items() if name not in matrices]
        self.muon = (muon or Muon)([view for *_, view in self.views], momentum=momentum,
                                   weight_decay=weight_decay)
        self.adamw = torch.optim.AdamW(
            [{"params": [p for p in rest if p.ndim == 2], "weight_decay": weight_decay},
             {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0}],
            betas=betas, fused=True,
        )

    def step(self, rate):
        """Update the parameters from their gradients; rate: AdamW's."""
        for weight, part, view in self.views:
            view.grad = weight.grad[:, part].t()
        for optimizer, its_rate in (self.muon, rate * self.relative_rate), (self.adamw, rate):
            for group in optimizer.param_groups:
                group["lr"] = its_rate
            optimizer.step()


def _parts(widths):
    """The columns of each matrix in a weight."""
    ends = itertools.accumulate(widths)
    return [slice(end - width, end) for width, end in zip(widths, ends)]


class Muon(torch.optim.Optimizer):
    """Called as torch.optim.Muon is."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            rate, beta = group["lr"], group["momentum"]
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for (O, I), params in same_shape.items():
                g = torch.stack([p.grad for p in params])                   # (n, O, I)
                state = self.state[params[0]]
                m = state.setdefault("momentum", torch.zeros_like(g))
                m.lerp_(g, 1 - beta)
                u = orthogonal(g.lerp_(m, beta))
                torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
                torch._foreach_add_(params, u.unbind(), alpha=-rate * math.sqrt(max(1, O / I)))


def orthogonal(g, steps=5):
    """g (n, O, I) -> each matrix with all its singular values about 1, as in npgpt.optim.muon.

    A square matrix is iterated itself. For other shapes, the iterations work on the smaller of
    g gᵀ and gᵀ g.
    """
    _, O, I = g.shape
    if O > I:
        return orthogonal(g.mT, steps).mT
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if O == I:
        for _ in range(steps):
            x = _quintic(x @ x.mT) @ x
        return x
    gram = x @ x.mT
    p = q = _quintic(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = _quintic(gram)
        q = p @ q
    return q @ x


def _quintic(gram, a=3.4445, b=-4.7750, c=2.0315):
    """gram (n, m, m) -> a + b gram + c gram²."""
    p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    p.diagonal(dim1=-2, dim2=-1).add_(a)
    return p
