"""Bases written as GGUF: llama.cpp computes transformers' numbers from them, or nothing is written."""

import errno
import json
import urllib.request

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from taia_hub import hub
from taia_hub.engines import gguf_tokens, gguf_vocabulary
from taia_hub.engines.gguf_base import LAYOUTS, read_base_vocabulary, read_parameters, write_gguf_base
from taia_hub.engines.gguf_lora import ROWS, read_base
from taia_hub.engines.gguf_vocabulary import SPLITS, read_vocabulary, write_vocabulary_alone
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError
from tests.conftest import made_once

gguf = pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEF.,!?0123456789"
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("1", "2")]
SPLIT = next(splits[0] for (splits, _), name in SPLITS.items() if name == "llama-bpe")


def byte_level(pre=None, normalizer=None, letters=f"{LETTERS}ĠĊ", ignore_merges=False):
    """A tokenizer of bytes, of which it knows these letters, and six merges."""
    words = ["<pad>", "<s>", "</s>", *letters, *("".join(pair) for pair in MERGES)]
    vocabulary = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, MERGES, ignore_merges=ignore_merges))
    made.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder, made.normalizer = decoders.ByteLevel(), normalizer
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def split_by(expression):
    steps = [pre_tokenizers.Split(Regex(expression), "isolated")]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def pieces(kind, **options):
    """A tokenizer of SentencePiece's kind."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if kind is GemmaTokenizer else ["<unk>", "<s>", "</s>"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("▁", "▁"), ("i", "n")]
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "▁", *map("".join, merges)]
    return kind(vocab={word: index for index, word in enumerate(words)}, merges=merges, **options)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Asks llama.cpp in this process, which takes a tenth of the time."""

    def tokens(vocabulary, name, asked):
        write_vocabulary_alone(vocabulary, tmp_path / "vocabulary.gguf", name)
        return gguf_tokens.tokens_of(tmp_path / "vocabulary.gguf", asked)

    monkeypatch.setattr(gguf_tokens, "_llama_cpp", tokens)


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(path), ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup, params.fit_params = 128, 1, 0, False, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def complete(path, ids, count):
    """llama.cpp's greedy tokens, and the log-probabilities of the five best at each place that it gives them for."""
    asked = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": 5, "return_tokens": True}
    server = serve(path)
    url = f"{server.listening_address}/completion"
    body = json.dumps({**asked, "ignore_eos": True, "logit_bias": [[token, False] for token in range(3)]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        made = json.load(answer)
    tops = [{one["id"]: one["logprob"] for one in place["top_logprobs"]} for place in made["completion_probabilities"]]
    return made["tokens"], tops


SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
SHAPE |= {"intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128, "initializer_range": 0.2}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA3 = {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 7}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
KINDS = {
    "llama": {},
    "llama-biased": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"head_dim": 16},
    "llama-linear": {"rope_parameters": LINEAR},
    "llama-llama3": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}},
    "mistral": {"sliding_window": 100},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": GEMMA3,
    "gemma3_text-linear": {
        **GEMMA3,
        "rope_parameters": {
            "full_attention": LINEAR,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000},
        },
    },
    "phi3": {"sliding_window": None},
    "phi3-partial": {"sliding_window": None, "partial_rotary_factor": 0.5},
}


def config_of(kind, **more):
    return AutoConfig.for_model(kind.partition("-")[0], **{**SHAPE, **KINDS.get(kind, {}), **more})


@pytest.fixture
def base(shared):
    """Returns a random base of a kind: every parameter, norms and biases too."""

    def made(kind, dtype=torch.float32, tokenizer=byte_level):
        def make(folder):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config_of(kind))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            model.to(dtype).save_pretrained(folder)
            tokenizer().save_pretrained(folder)

        folder = made_once(shared / f"gguf-{list(KINDS).index(kind)}-{str(dtype)[6:]}", make)
        return hub.Source(str(folder), folder, None)

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_transformers_does(base, tmp_path, kind):
    source = base(kind)
    written = write_gguf_base(source, tmp_path / "base.gguf")
    assert (written.dtype, written.size) == ("float32", written.path.stat().st_size)
    model = AutoModelForCausalLM.from_pretrained(source.folder).eval()
    ids = torch.randint(3, 56, (1, 40), generator=torch.Generator().manual_seed(1))
    keywords = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "suppress_tokens": [0, 1, 2]}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, **keywords)
    with torch.no_grad():
        ours = model(made).logits[0, ids.shape[1] - 1 : -1]
    expected = made[0, ids.shape[1] :].tolist()
    tokens, tops = complete(written.path, ids[0].tolist(), 8)
    assert tokens == expected
    near = 0.02 if kind.startswith("gemma") else 1e-4  # ggml looks GELU up in a table of 16 bits
    for place, top in zip(ours.log_softmax(-1), tops, strict=True):
        for token, theirs in top.items():
            if token > 2:
                assert place[token].item() == pytest.approx(theirs, abs=near)


def test_every_layout_is_tried_and_has_an_order_of_rows():
    assert {kind.partition("-")[0] for kind in KINDS} == set(LAYOUTS)
    assert {layout.name for layout in LAYOUTS.values()} == set(ROWS)


def tensors_of(path):
    return {one.name: one for one in gguf.GGUFReader(path).tensors}


def test_a_checkpoint_of_sixteen_bits_keeps_its_numbers(base, tmp_path):
    """The head is tied: it is written once, and rows lie as in float32."""
    source, stages = base("qwen2", torch.bfloat16), []
    written = write_gguf_base(source, tmp_path / "base.gguf", progress=lambda *stage: stages.append(stage))
    assert (written.dtype, stages[-1]) == ("bfloat16", ("writing the base as GGUF", 1, 1))
    whole = write_gguf_base(source, tmp_path / "whole.gguf", dtype="float32")
    short, full = tensors_of(written.path), tensors_of(whole.path)
    assert "output.weight" not in short
    for name, tensor in full.items():
        kind = short[name].tensor_type
        assert kind.name == ("BF16" if len(tensor.shape) > 1 else "F32")
        assert np.array_equal(gguf.quants.dequantize(short[name].data, kind), tensor.data)


def test_eight_bits_are_those_of_gguf(base, tmp_path):
    source = base("llama")
    full = tensors_of(write_gguf_base(source, tmp_path / "full.gguf").path)
    small = tensors_of(write_gguf_base(source, tmp_path / "small.gguf", dtype="q8_0").path)
    kinds = {name.split(".")[-2]: one.tensor_type.name for name, one in small.items()}
    assert (kinds["ffn_down"], kinds["attn_q"], kinds["attn_norm"]) == ("Q8_0", "F32", "F32")  # 16 columns are no block
    name = "blk.1.ffn_down.weight"
    assert np.array_equal(small[name].data, gguf.quants.quantize(np.array(full[name].data), small[name].tensor_type))


def test_what_sixteen_bits_cannot_hold_is_refused_and_nothing_stays(base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    folder.mkdir()
    for path in base("qwen3").folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"'blk\.1\.ffn_down\.weight' holds 1e\+05, which becomes infinite"):
        write_gguf_base(hub.Source("base", folder, None), tmp_path / "out" / "base.gguf", dtype="float16")
    for value, said in ((1e9, r"1e\+09"), (-1e9, r"1e\+09"), (float("nan"), "nan")):
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=rf"'blk\.1\.ffn_down\.weight' holds {said}; the largest .* 8\.32e\+06"):
            write_gguf_base(hub.Source("base", folder, None), tmp_path / "out" / "base.gguf", dtype="q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing_half(base, tmp_path, monkeypatch):
    source, out = base("llama"), tmp_path / "out" / "base.gguf"
    write_gguf_base(source, out)
    before, count = out.read_bytes(), 0

    def write(self, tensor):
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(f"{tensor.size} requested and 0 written")  # as numpy says it
        tensor.tofile(self.fout[0])

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", write)
    with pytest.raises(RepositoryError, match="no space is left") as caught:
        write_gguf_base(source, out)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert ([path.name for path in out.parent.iterdir()], out.read_bytes()) == (["base.gguf"], before)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RepositoryError, match=r"The base model as GGUF needs .* where 1"):
        write_gguf_base(source, out)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("gpt2", {}, "a gpt2, lies in a GGUF file is not known here; known are llama, mistral"),
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu, where llama.cpp computes silu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "rotary embedding.*yarn",
        ),
        ("qwen2", {"head_dim": 16}, "its head_dim is 16, where llama.cpp computes 8"),
        ("qwen3", {"attention_bias": True}, "its attention_bias is True"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "its query_pre_attn_scalar is 7"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "its layer_types is"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "its final_logit_softcapping is 30.0"),
    ],
)
def test_what_is_not_known_is_refused_by_name(kind, more, message):
    with pytest.raises(UnsupportedUpdateError, match=message) as caught:
        read_parameters(config_of(kind, **more), "base model 'org/base'")
    assert "--gguf" in str(caught.value) or "convert_hf_to_gguf.py" in caught.value.hint


def test_a_window_that_llama_cpp_has_not_ends_the_context():
    """Mistral's: within it both compute the same."""
    assert read_parameters(config_of("mistral"), "base")[1]["context_length"] == 100
    assert read_parameters(config_of("mistral", sliding_window=None), "base")[1]["context_length"] == 128
    assert read_parameters(config_of("gemma2"), "base")[1]["context_length"] == 128


# --- Vocabularies --------------------------------------------------------------------------------------------------
def checked(tokenizer, size=None, ends=(2,)):
    vocabulary = read_vocabulary(tokenizer, size or len(tokenizer), list(ends), "base model 'base'")
    gguf_tokens.check_vocabulary(vocabulary, "base")
    return vocabulary.fields


def test_known_tokenizers_make_llama_cpps_tokens():
    digits = pre_tokenizers.Digits(individual_digits=True)
    smollm = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    qwen = next(splits[0] for (splits, _), name in SPLITS.items() if name == "qwen2")
    for tokenizer, name in (
        (byte_level(), "gpt-2"),
        (byte_level(smollm), "smollm"),
        (byte_level(split_by(SPLIT), ignore_merges=True), "llama-bpe"),
        (byte_level(split_by(SPLIT)), "dbrx"),
        (byte_level(split_by(qwen), normalizers.NFC()), "qwen2"),
    ):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        tokenizer.add_tokens(["<think>"])
        tokenizer.chat_template = "{% for one in messages %}<|im_start|>{{ one.content }}</s>\n{% endfor %}"
        fields = checked(tokenizer, size=64, ends=(2, 57))
        assert (fields["ggml.model"], fields["ggml.pre"]) == ("gpt2", name)
        assert (fields["ggml.tokens"][58:60], fields["ggml.token_type"][58:60]) == (["<think>", "[PAD59]"], [4, 5])
        assert (fields["ggml.eos_token_id"], fields["ggml.eot_token_id"]) == (2, 57)
        assert fields["chat_template"] == tokenizer.chat_template


def test_sentencepiece_is_known_where_llama_cpp_splits_alike():
    fields = checked(pieces(GemmaTokenizer))
    assert (fields["ggml.model"], fields["ggml.add_space_prefix"]) == ("llama", False)
    assert fields["ggml.token_type"][3:5] == [2, 6]  # unknown, and a byte
    older = pieces(LlamaTokenizer)
    replaced = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    older.backend_tokenizer.normalizer = normalizers.Sequence(replaced)
    older.backend_tokenizer.pre_tokenizer = None
    assert checked(older)["ggml.add_space_prefix"] is True
    with pytest.raises(UnsupportedUpdateError, match=r"llama\.cpp makes other tokens .* of the text '  two  spaces"):
        checked(pieces(LlamaTokenizer))  # transformers puts no space before a text that begins with one


def test_a_tokenizer_that_splits_otherwise_is_refused(monkeypatch):
    for tokenizer, message in (
        (byte_level(split_by(r"\w+|\W+")), "how it splits text is none of the ways"),
        (byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "how it splits text"),
        (byte_level(normalizer=normalizers.Lowercase()), "how it splits text"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))), "of the kind WordLevel"),
    ):
        with pytest.raises(UnsupportedUpdateError, match=message) as caught:
            checked(tokenizer)
        assert "--gguf FILE" in caught.value.hint
    with pytest.raises(UnsupportedUpdateError, match="it has 57 tokens, and the model 50"):
        checked(byte_level(), size=50)
    key = next(key for key, name in SPLITS.items() if name == "gpt-2")
    monkeypatch.setattr(gguf_vocabulary, "SPLITS", {key: "smollm"})  # a wrong entry does not pass unseen
    with pytest.raises(UnsupportedUpdateError, match="than the tokenizer of 'base' of the text '1 12 123"):
        checked(byte_level())


def test_special_tokens_are_compared_too():
    """A token that takes the spaces around it: llama.cpp does not."""
    from tokenizers import AddedToken

    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
    with pytest.raises(UnsupportedUpdateError, match="of the text 'Say <tool> and<tool>then"):
        checked(tokenizer)


def test_llama_cpp_is_asked_in_a_process_of_its_own(base, monkeypatch):
    """What it says stays there, and what it cannot load is a refusal."""
    monkeypatch.undo()
    vocabulary = read_base_vocabulary(base("llama"))
    vocabulary.fields["ggml.pre"] = "unheard-of"
    with pytest.raises(UnsupportedUpdateError, match=r"llama\.cpp cannot load the vocabulary of 'base'"):
        gguf_tokens.check_vocabulary(vocabulary, "base")


def test_llama_cpp_that_does_not_answer_is_no_wait_without_end(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(gguf_tokens, "_SECONDS", 0.01)
    with pytest.raises(UnsupportedUpdateError, match=r"it did not answer in 0\.01 seconds"):
        checked(byte_level())


def test_without_xllamacpp_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    checked(byte_level())
    assert "the tokens of 'base' as GGUF were not compared" in caplog.text


def test_the_file_reads_as_any_base(base, tmp_path):
    header = read_base(write_gguf_base(base("llama"), tmp_path / "base.gguf").path)
    assert (header.architecture, header.blocks, header.heads, header.key_heads) == ("llama", 2, 2, 1)
    assert header.shapes["token_embd.weight"] == (64, 16)
