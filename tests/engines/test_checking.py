"""Adapters of others, as they lie in their folders: which engines take them, and why the others do not."""

import json
import shutil

import pytest
import torch
from peft import LoHaConfig
from safetensors.torch import load_file, save_file

from taia_hub import TAIAForCausalLM, hub
from taia_hub.engines import LOADERS, check_adapter
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.exporting import export_adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def copied(folder, out, edit=None, **changes):
    """A copy of an adapter with another configuration, or other tensors."""
    shutil.copytree(folder, out)
    config = json.loads((folder / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps({**config, **changes}))
    if edit is not None:
        tensors = load_file(folder / WEIGHTS)
        save_file(edit(tensors), out / WEIGHTS)
    return out


@pytest.mark.parametrize(
    ("name", "lora", "takers", "reasons"),
    [
        (
            "llama",
            {"r": 3, "use_dora": True, "target_modules": TARGETS},
            {"peft"},
            {"vllm": "DoRA", "sglang": "DoRA", "tgi": "DoRA", "lorax": "DoRA", "llama.cpp": "no LoRA factors"},
        ),
        (
            "llama",
            {"r": 3, "target_modules": TARGETS, "modules_to_save": ["lm_head"]},
            {"peft"},
            {"vllm": "modules_to_save", "sglang": "modules_to_save", "tgi": "lm_head", "llama.cpp": "lm_head"},
        ),
        (
            "llama",
            {"r": 3, "target_modules": TARGETS, "rank_pattern": {"q_proj": 5}},
            {"vllm", "peft"},
            {"sglang": "rank_pattern", "lorax": "rank_pattern", "llama.cpp": "rank"},
        ),
        (
            "mixtral",
            {"r": 3},  # with target_parameters
            {"peft"},
            {"vllm": "target_parameters", "sglang": "target_parameters", "llama.cpp": "target_parameters"},
        ),
        ("llama", {"r": 3, "target_modules": TARGETS}, set(LOADERS), {}),
        (
            "llama",
            {"r": 3, "target_modules": TARGETS, "use_rslora": True},
            {"vllm", "tgi", "lorax", "peft"},
            {"sglang": "scale would be wrong", "llama.cpp": "scale would be wrong"},
        ),
        (
            "llama",
            {"r": 3, "target_modules": r".*\.self_attn\.[qkvo]_proj"},
            set(LOADERS) - {"sglang"},
            {"sglang": "is an expression"},
        ),
        (
            "llama",
            {"r": 3, "target_modules": TARGETS, "layers_to_transform": [1]},
            set(LOADERS) - {"tgi", "lorax"},
            {"tgi": "has no tensors, so that all 1 of", "lorax": "would be dropped"},
        ),
    ],
)
def test_foreign_adapters(pico, name, lora, takers, reasons):
    label = f"foreign-{abs(hash(json.dumps(lora, sort_keys=True)))}"
    found = check_adapter(pico.adapter(name, pico.lora(name, **lora), label))

    assert set(found.taken_by) == takers
    for engine, reason in reasons.items():
        assert any(reason in problem for problem in found.verdicts[engine].problems), found.verdicts[engine]
    for verdict in found.verdicts.values():
        assert len(verdict.sources) == len(verdict.problems)


def test_another_method_is_read_by_peft_alone(pico):
    folder = pico.adapter("llama", LoHaConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"), "foreign-loha")
    assert check_adapter(folder).taken_by == ("peft",)


@pytest.mark.parametrize(
    ("changes", "engine", "reason"),
    [
        ({"bias": "lora_only"}, "vllm", "bias='lora_only'"),
        ({"init_lora_weights": "pissa"}, "vllm", "changes the base's weights"),
        ({"alora_invocation_tokens": [1, 2]}, "llama.cpp", "alora_invocation_tokens"),
        ({"r": None}, "lorax", "r is missing"),
        ({"task_type": "FEATURE_EXTRACTION"}, "vllm", "without a language-modelling head"),
        ({"target_modules": ["self_attn.q_proj"]}, "sglang", "with a prefix"),
        ({"target_modules": ["q_proj"]}, "peft", "not targeted"),
        ({"target_modules": "[q_proj"}, "peft", "not targeted"),
    ],
)
def test_options_of_a_configuration(pico, changes, engine, reason, tmp_path):
    plain = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")
    found = check_adapter(copied(plain, tmp_path / "other", **changes), [engine])
    assert list(found.verdicts) == [engine]
    assert any(reason in problem for problem in found.verdicts[engine].problems)
    assert found.taken_by == ()


def test_tensors_that_are_missing_or_named_otherwise(pico, tmp_path):
    plain = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def without(name, part):
        return copied(plain, tmp_path / name, lambda held: {key: one for key, one in held.items() if part not in key})

    assert "has no counterpart" in check_adapter(without("single", first)).verdicts["peft"].problems[0]
    layer = check_adapter(without("layer", "layers.0.self_attn.q_proj"))
    assert {"tgi", "lorax", "peft"}.isdisjoint(layer.taken_by)
    bare = copied(plain, tmp_path / "bare", lambda held: {key.partition("el.")[2]: one for key, one in held.items()})
    assert "does not begin with" in check_adapter(bare).verdicts["tgi"].problems[0]


def test_an_update_of_a_tied_head_and_of_embeddings(pico, tmp_path):
    lora = pico.lora("llama", r=3, target_modules=[*TARGETS, "lm_head", "embed_tokens"])
    folder = copied(pico.adapter("llama", lora, "foreign-head"), tmp_path / "head")
    base = tmp_path / "base"
    shutil.copytree(pico.base("llama"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    copy = copied(folder, tmp_path / "tied", base_model_name_or_path=str(base))

    assert any("is tied" in one for one in check_adapter(copy).verdicts["llama.cpp"].problems)
    found = check_adapter(folder)
    assert not any("is tied" in one for one in found.verdicts["llama.cpp"].problems)
    assert any("embedding_modules" in note for note in found.verdicts["vllm"].notes)
    assert "updates of embeddings are dropped in silence" in found.verdicts["tgi"].problems


def test_what_is_not_known_of_a_base_is_not_guessed(pico, tmp_path):
    plain = pico.adapter(
        "llama", pico.lora("llama", r=3, target_modules=TARGETS, layers_to_transform=[1]), "foreign-layer"
    )
    for name in (None, str(tmp_path / "gone"), "./gone"):
        found = check_adapter(copied(plain, tmp_path / f"base-{name}".replace("/", "-"), base_model_name_or_path=name))
        assert not found.base.modules
        assert set(found.taken_by) == set(LOADERS)
        assert found.to_dict()["base_was_read"] is False


@pytest.mark.parametrize("content", [b"", b"no tensors at all"])
def test_a_damaged_base_is_not_known(pico, tmp_path, content):
    plain = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")
    base = shutil.copytree(pico.base("llama"), tmp_path / "base")
    (base / "model.safetensors").write_bytes(content)
    found = check_adapter(copied(plain, tmp_path / "adapter", base_model_name_or_path=str(base)))
    assert found.to_dict()["base_was_read"] is False


def test_an_export_is_taken_by_all(pico, tmp_path):
    dora = pico.adapter("llama", pico.lora("llama", r=3, use_dora=True, target_modules=TARGETS), "foreign-dora")
    assert check_adapter(dora).taken_by == ("peft",)
    export_adapter(dora, tmp_path / "out", "all")
    found = check_adapter(tmp_path / "out")
    assert set(found.taken_by) == set(LOADERS)
    assert found.base.modules


def test_repositories_on_the_hub(online, repo_id):
    online.push_adapter(repo_id, r=17, target_modules=TARGETS)
    found = check_adapter(repo_id)
    assert found.revision == online.api.model_info(repo_id).sha
    assert found.base.modules >= {"model.layers.0.self_attn.q_proj"}  # of the header of the base's file
    assert found.base.remote
    assert "--max-lora-rank 32" in found.verdicts["vllm"].notes
    assert set(found.taken_by) == set(LOADERS)
    assert check_adapter(online.taia, ["peft"]).taken_by == ("peft",)  # the adapter that it holds


def test_no_model_is_built(pico, monkeypatch):
    folder = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")

    def refused(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.nn.Module, "__init__", refused)
    monkeypatch.setattr(torch, "empty", refused)
    assert check_adapter(folder).taken_by == LOADERS


def test_nothing_of_a_model_is_imported(pico, clean_process):
    folder = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")
    ran = clean_process(
        f"""
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None  # an import of it fails
import taia_hub.cards.snippets
from taia_hub.cli import main
main(["check", {str(folder)!r}])
"""
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("takes it as it is") == len(LOADERS)


def test_what_is_no_adapter(pico, tmp_path):
    with pytest.raises(RepositoryError, match=r"has no adapter_config\.json"):
        check_adapter(pico.base("llama"))
    with pytest.raises(ConfigError, match="Did you mean 'sglang'"):
        check_adapter(tmp_path, ["sgland"])
    plain = pico.adapter("llama", pico.lora("llama", r=3, target_modules=TARGETS), "foreign-plain")
    with pytest.raises(ConfigError, match=r"adapter_config\.json of .* is malformed"):
        check_adapter(copied(plain, tmp_path / "odd", rank_pattern=[1]))
    (tmp_path / "odd" / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(RepositoryError, match="truncated"):
        check_adapter(tmp_path / "odd")


def test_shapes_are_those_of_the_tensors(pico):
    path = pico.adapter("llama") / WEIGHTS
    assert hub.tensor_shapes(path) == {name: tuple(one.shape) for name, one in load_file(path).items()}


def test_a_taia_folder_is_asked_for_its_adapter(pico, tmp_path):
    TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama")).save_pretrained(tmp_path / "model")
    assert check_adapter(tmp_path / "model").config["r"] == 4


def test_a_repository_of_another_kind_is_no_adapter_whatever_lies_in_it(pico, tmp_path):
    TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama")).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["update"] = {"kind": "dense", "path": "dense"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RepositoryError, match="holds a full fine-tune, which no engine takes as it is"):
        check_adapter(tmp_path / "model")
