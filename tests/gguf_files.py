"""Small GGUF files for the tests, written by the package gguf."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from npgpt.models.llama import Llama, LlamaConfig
from npgpt.text.bpe import BPETokenizer

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def write_gguf(path, metadata=(), tensors=(), kind="F32", architecture="llama"):
    """Write a file. metadata: name -> value, a whole number as uint32, another one as float32;
    tensors: name -> array, the matrices quantised to this kind."""
    writer = gguf.GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}
    for name, value in dict(metadata).items():
        add[type(value)](name, value)
    for name, array in dict(tensors).items():
        array, of = np.ascontiguousarray(array, np.float32), Kind[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_llama(**options):
    """A Llama with no parameter at its initial value."""
    sizes = {"vocab_size": 40, "block_size": 16, "n_layer": 2, "n_head": 6, "n_kv_head": 2,
             "n_embd": 36, "n_inner": 20, "rope_theta": 500.0}
    model = Llama(LlamaConfig(**sizes | options))
    draw = np.random.default_rng(3).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.2
    return model


def metadata_of(config):
    """LlamaConfig -> the metadata of its file."""
    return {
        "llama.context_length": config.block_size,
        "llama.block_count": config.n_layer,
        "llama.embedding_length": config.n_embd,
        "llama.feed_forward_length": config.n_inner,
        "llama.attention.head_count": config.n_head,
        "llama.attention.head_count_kv": config.n_kv_head,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
    }


def tensors_of(model):
    """Llama -> the tensors of its file, by llama.cpp's names."""
    c, found = model.config, {}
    q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "o_proj": "attn_output", "down_proj": "ffn_down"}
    for name, array in model.params.items():
        *path, layer, kind = name.split(".")
        block = f"blk.{path[1]}." if path else ""
        array = array if layer in ("embed_tokens", "lm_head") else array.T      # (out, in)
        if layer == "qkv_proj":
            parts = dict(zip(("attn_q", "attn_k", "attn_v"), np.split(array, [q, q + kv])))
            for part, heads in (("attn_q", c.n_head), ("attn_k", c.n_kv_head)):
                rows = np.arange(heads * c.head_dim).reshape(heads, 2, -1)    # halves of a head
                parts[part] = parts[part][np.stack([rows[:, 0], rows[:, 1]], -1).ravel()]
        elif layer == "gate_up_proj":
            parts = dict(zip(("ffn_gate", "ffn_up"), np.split(array, 2)))
        else:
            parts = {names[layer]: array}
        found |= {f"{block}{part}.{kind}": value for part, value in parts.items()}
    return found


TEXTS = ["It's 1999's café — naïve “quotes”, 3.14 and 12345; DON'T! \n\n\tfor i in\r\n", " x" * 9]


def tokenizer_metadata(pre="smollm", vocab_size=300):
    """-> the metadata of a byte-level BPE that was trained on TEXTS, with two special tokens at its
    end."""
    with TemporaryDirectory() as folder:
        BPETokenizer.train(TEXTS * 3, vocab_size - 2).save(folder)
        model = json.loads(Path(folder, "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 3) + [3, 3],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
