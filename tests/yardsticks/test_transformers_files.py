"""Files that transformers and npgpt give each other: both compute the same from them."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints.run import RunDirectory
from npgpt.text.characters import CharTokenizer
from npgpt.text.tokenizer import load_tokenizer

SIZES = {"vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}
OTHER_NAMES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions",
               "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
IDX = np.arange(8)[None]

HARD_TEXTS = [
    "First Citizen:\nBefore we proceed, hear me.\n", "  two before, two after  ",
    "\n\n a\n\nb \n", "a\tb\r\nc\rd", " ", "\n",
    "do n't , it 's . is it ? yes ! we 'll we 've we 're I 'm", '"q" \'s\' ``x\'\' `',
    "caf\xe9 and cafe\u0301, \u212b \ufb01 \u0130 \xdf",           # composed, decomposed, ligature
    "\U0001f600\U0001f469\u200d\U0001f4bb \U00010348", "\u4f60\u597d \u0645\u0631 \u0e2a\u0e31",
    "\x00\x01\x1b\x7f\x85", "\ufeffbom \u200b\u200d\u2060 \xa0\u2028\u2029\u3000 \xad",
    "<|endoftext|> <s></s> <unk> [UNK] [CLS] <pad>",                # looks like special tokens
    "##a \u0120b \u010a \u2581c </w> @@",                           # looks like parts of words
]


@pytest.fixture
def gpt2(tmp_path, torch, transformers):
    """Write a random GPT-2 with transformers -> function: options -> the model, its directory."""
    def write(family="GPT2LMHeadModel", **options):
        torch.manual_seed(0)
        config = transformers.GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None, **options)
        model = getattr(transformers, family)(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / "gpt2")
        return model, tmp_path / "gpt2"
    return write


def logits_of(model, torch):
    with torch.no_grad():
        return model(torch.tensor(IDX)).logits.numpy()


def change(path, **values):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_bias", [False, True])
def test_auto_tokenizer_reads_a_checkpoint_as_it_is(head_bias, tmp_path, transformers):
    tokenizer = CharTokenizer("".join(HARD_TEXTS))
    sizes = {"block_size": 4, "n_layer": 1, "n_head": 1, "n_embd": 4, "head_bias": head_bias}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes))
    run = RunDirectory(tmp_path / "run")
    run.begin(0)
    run.save(model, tokenizer, {}, {"step": 1, "best_val_loss": None})
    theirs = transformers.AutoTokenizer.from_pretrained(run.checkpoint("latest"))
    assert len(theirs) == tokenizer.vocab_size and theirs.all_special_tokens == []
    for text in (*HARD_TEXTS, "".join(HARD_TEXTS)):
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == text
    theirs.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").characters == tokenizer.characters
    alone = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(run.checkpoint("latest") / "tokenizer.json"))
    assert alone("".join(HARD_TEXTS))["input_ids"] == ids
    with pytest.raises(Exception, match="not found in the vocabulary"):
        theirs("First Z")                          # as npgpt refuses an unknown character


def test_transformers_does_not_take_a_model_with_a_head_bias_for_a_gpt2(tmp_path, transformers):
    GPT(GPTConfig(11, 8, 1, 1, 4, head_bias=True)).save_pretrained(tmp_path / "m")
    for auto in (transformers.AutoConfig, transformers.AutoModelForCausalLM):
        with pytest.raises(ValueError, match="model type `npgpt`"):
            auto.from_pretrained(tmp_path / "m")


def test_other_names_and_defaults_are_those_of_transformers(tmp_path, transformers):
    assert transformers.GPT2Config.attribute_map == OTHER_NAMES
    theirs = transformers.GPT2Config()
    GPT(GPTConfig(n_embd=12)).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").unlink()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gpt2", "hidden_size": 12}')
    assert GPT.from_pretrained(tmp_path / "m").config == GPTConfig(
        theirs.vocab_size, theirs.n_positions, theirs.n_layer, theirs.n_head, 12,
        theirs.resid_pdrop, "gelu", theirs.tie_word_embeddings)
    assert theirs.activation_function == "gelu_new" and theirs.n_embd == 768
    assert theirs.layer_norm_epsilon == 1e-5 and theirs.scale_attn_weights


def test_sizes_under_other_names_give_the_same_logits(gpt2, torch, transformers):
    _, path = gpt2()
    values = json.loads((path / "config.json").read_text())
    for alias, name in OTHER_NAMES.items():
        values[alias] = values.pop(name)
    (path / "config.json").write_text(json.dumps(values))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).eval()
    same(GPT.from_pretrained(path).logits(IDX), logits_of(theirs, torch))
    wrong, _ = gpt2()                        # it matters: with two heads the logits differ
    change(path, n_head=2)
    assert abs(GPT.from_pretrained(path).logits(IDX) - logits_of(wrong, torch)).max() > 1e-2


def test_of_two_names_that_differ_transformers_takes_one_in_silence(gpt2, transformers):
    _, path = gpt2()
    change(path, n_head=2, num_attention_heads=4)
    assert transformers.GPT2Config.from_pretrained(path).n_head == 4
    with pytest.raises(UserError, match="n_head is 2, but num_attention_heads"):
        GPT.from_pretrained(path)


def test_of_a_tied_head_that_differs_transformers_computes_something_else(gpt2, torch,
                                                                          transformers):
    _, path = gpt2()
    head = torch.randn(11, 16)
    weights = load_file(path / "model.safetensors") | {"lm_head.weight": head.numpy()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    read = transformers.GPT2LMHeadModel.from_pretrained(path)
    assert read.config.tie_word_embeddings and torch.equal(read.lm_head.weight, head)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT.from_pretrained(path)
    change(path, tie_word_embeddings=False)                # as the message says
    same(GPT.from_pretrained(path).logits(IDX), logits_of(read.eval(), torch))


def test_model_without_a_head_is_read_as_tied(gpt2, torch, transformers):
    _, path = gpt2("GPT2Model")
    assert "wte.weight" in load_file(path / "model.safetensors")      # without a prefix
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).eval()
    same(GPT.from_pretrained(path).logits(IDX), logits_of(theirs, torch))


@pytest.mark.parametrize("options", [
    {"n_inner": 24}, {"n_inner": 64}, {"layer_norm_epsilon": 0.03}, {"layer_norm_epsilon": 1e-12},
    {"n_inner": 5, "layer_norm_epsilon": 0.5, "activation_function": "relu"},
])
def test_width_of_the_mlp_and_epsilon_are_read(options, gpt2, tmp_path, torch, transformers):
    theirs, path = gpt2(**options)
    model = GPT.from_pretrained(path)
    same(model.logits(IDX), logits_of(theirs, torch))
    model.save_pretrained(tmp_path / "again")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(torch.tensor(IDX)).logits, theirs(torch.tensor(IDX)).logits)
    assert {name: getattr(again.config, name) for name in options} == options


@pytest.mark.parametrize("rates", [(0.1, 0.2, 0.3), (0.0, 0.2, 0.0), (0.1, 0.0, 0.1)])
def test_three_dropouts_mean_the_same(rates, gpt2, tmp_path, transformers):
    resid, embd, attn = rates
    _, path = gpt2(resid_pdrop=resid, embd_pdrop=embd, attn_pdrop=attn)
    model = GPT.from_pretrained(path)
    c = model.config
    assert (c.dropout, c.embedding_dropout, c.attention_dropout) == rates
    model.save_pretrained(tmp_path / "again")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again").transformer
    block = theirs.h[1]
    assert (block.mlp.dropout.p, theirs.drop.p, block.attn.attn_dropout.p) == rates
    assert block.attn.resid_dropout.p == resid


def test_cross_attention_is_refused(gpt2):
    _, path = gpt2(add_cross_attention=True)
    with pytest.raises(UserError, match="does not support add_cross_attention = True"):
        GPT.from_pretrained(path)


def test_shards_give_the_same_logits(gpt2, torch):
    theirs, path = gpt2()
    (path / "model.safetensors").unlink()
    theirs.save_pretrained(path, max_shard_size="10KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2
    same(GPT.from_pretrained(path).logits(IDX), logits_of(theirs, torch))


def test_of_a_file_and_shards_both_take_the_file(gpt2, tmp_path, torch, transformers):
    theirs, path = gpt2()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    for file in (tmp_path / "shards").glob("model*"):
        file.rename(path / file.name)
    model = GPT.from_pretrained(path)
    model.params["ln_f.bias"] += 1
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "other/model.safetensors").rename(path / "model.safetensors")
    read = transformers.GPT2LMHeadModel.from_pretrained(path).eval()
    assert abs(logits_of(read, torch) - logits_of(theirs, torch)).max() > 0.1
    same(GPT.from_pretrained(path).logits(IDX), logits_of(read, torch))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", ["10KB", "1GB"])
def test_short_floats_are_read_exactly(size, dtype, tied, gpt2, torch):
    theirs, path = gpt2(tie_word_embeddings=tied)
    (path / "model.safetensors").unlink()
    theirs.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=size)
    params = GPT.from_pretrained(path).params
    found = theirs.float().state_dict()
    for name, array in params.items():
        key = name if name.startswith("lm_head") else f"transformer.{name}"
        np.testing.assert_array_equal(array, found[key].numpy(), strict=True)


@pytest.mark.parametrize("form", ["variant", "shards of a variant", "pickle"])
def test_call_in_the_message_converts_other_weights(form, gpt2, tmp_path, monkeypatch, torch,
                                                    transformers):
    theirs, path = gpt2()
    expected = logits_of(theirs, torch)
    (path / "model.safetensors").unlink()
    if form == "pickle":
        torch.save(theirs.state_dict(), path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(path, variant="fp16" if "variant" in form else None,
                               max_shard_size="10KB" if "shards" in form else "1GB")
    with pytest.raises(UserError, match="convert it with transformers: ") as error:
        GPT.from_pretrained(path)
    call = re.search(r"with transformers: (.*)$", str(error.value))[1]
    monkeypatch.chdir(tmp_path)
    exec(call, {"AutoModelForCausalLM": transformers.AutoModelForCausalLM})
    same(GPT.from_pretrained("NEW").logits(IDX), expected)
