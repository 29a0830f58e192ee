"""The same GPT in PyTorch, the reference for tests and benchmarks.

Modules have npgpt's names and weights are (in, out), so parameters are copied by name. A new model
is in evaluation mode; after `.train()` it has dropout where npgpt has. npgpt never imports this.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Module):
    """y = x @ weight + bias, weight (in, out) as in GPT-2."""

    def __init__(self, n_in, n_out, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, self.dropout, self.attn_dropout = c.n_head, c.dropout, c.attention_dropout
        self.c_attn = Linear(c.n_embd, 3 * c.n_embd, c.attn_bias)
        self.c_proj = Linear(c.n_embd, c.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2)
                   for part in self.c_attn(x).split(C, -1))
        p = self.attn_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc = Linear(c.n_embd, c.inner)
        self.c_proj = Linear(c.inner, c.n_embd)
        self.dropout = c.dropout
        self.act = F.relu if c.activation == "relu" else lambda x: F.gelu(x, approximate="tanh")

    def forward(self, x):
        return F.dropout(self.c_proj(self.act(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(c.n_embd, c.norm_eps), Attention(c)
        self.ln_2, self.mlp = nn.LayerNorm(c.n_embd, c.norm_eps), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """GPTConfig -> a model whose parameters have npgpt's names and shapes."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(c.block_size, c.n_embd)
        self.h = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd, c.norm_eps)
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=c.head_bias)
        if c.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.eval()

    def take(self, params):
        """Copy a mapping of names to NumPy arrays into the parameters -> self."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.as_tensor(params[name]))
        return self

    def forward(self, idx, targets=None):
        """idx (B, T) -> logits (B, T, V); with targets (B, T), -1 ignored -> loss."""
        x = self.wte(idx) + self.wpe.weight[:idx.shape[1]]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
