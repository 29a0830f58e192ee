"""The lecture's two models and their training in PyTorch, to compare the examples with.

Written from the description, with PyTorch's own modules where possible. Nothing of npgpt is used:
not its layers, its optimiser, its random numbers or its tokenizer.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

SEED = 1337


class Bigram(nn.Module):
    block_size = 8

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx):
        return self.table(idx)


class Head(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(channels, size, bias=False) for _ in "kqv")

    def forward(self, x):
        T = x.shape[1]
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores = self.query(x) @ self.key(x).mT / math.sqrt(self.key.out_features)
        return scores.masked_fill(future, -math.inf).softmax(-1) @ self.value(x)


class Block(nn.Module):
    def __init__(self, channels, n_head):
        super().__init__()
        self.heads = nn.ModuleList(Head(channels, channels // n_head) for _ in range(n_head))
        self.proj = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(),
                                 nn.Linear(4 * channels, channels))
        self.ln_1, self.ln_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.proj(torch.cat([head(h) for head in self.heads], -1))
        return x + self.mlp(self.ln_2(x))


class SmallGPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.block_size = block_size
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.Sequential(*(Block(n_embd, n_head) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        self.apply(initialise)

    def forward(self, idx):
        return self.lm_head(self.ln_f(self.h(self.wte(idx) + self.wpe.weight[:idx.shape[1]])))


def initialise(module):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def parameters(model):
    """A SmallGPT's parameters under npgpt's names, as NumPy arrays."""
    found = {}
    for name, p in model.named_parameters():
        name = name.replace("mlp.0", "mlp.c_fc").replace("mlp.2", "mlp.c_proj")
        name = name.replace(".proj", ".attn.c_proj")
        p = p.detach().numpy()
        found[name] = p.T if name.startswith("h.") and p.ndim == 2 else p
    for layer, block in enumerate(model.h):
        fused = [getattr(head, part).weight for part in ("query", "key", "value")
                 for head in block.heads]
        found[f"h.{layer}.attn.c_attn.weight"] = torch.cat(fused).detach().numpy().T
    return {name: p for name, p in found.items() if ".heads." not in name}


def replay(model, text, steps, B, learning_rate, eval_interval, eval_iters, last=False):
    """Train -> the output of the lecture's script. last: also evaluate at the last step."""
    torch.set_num_threads(1)         # at these sizes more threads take longer
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(c) for c in text])
    border = int(0.9 * len(ids))
    splits = ids[:border], ids[border:]
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def loss_of_a_batch(split):
        starts = torch.randint(len(split) - model.block_size, (B,))
        windows = split[starts[:, None] + torch.arange(model.block_size + 1)]
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    printed = ""
    for step in range(steps):
        if step % eval_interval == 0 or (last and step == steps - 1):
            with torch.no_grad():
                train, val = (torch.tensor([loss_of_a_batch(split) for _ in range(eval_iters)],
                                           dtype=dtype).mean() for split in splits)
            printed += f"step {step}: train loss {train:.4f}, val loss {val:.4f}\n"
        optimizer.zero_grad()
        loss_of_a_batch(splits[0]).backward()
        optimizer.step()

    idx = torch.zeros((1, 1), dtype=torch.long)
    with torch.no_grad():
        for _ in range(500):
            probs = model(idx[:, -model.block_size:])[:, -1].softmax(-1)
            idx = torch.cat([idx, torch.multinomial(probs, 1)], 1)
    return printed + "".join(characters[i] for i in idx[0]) + "\n"
