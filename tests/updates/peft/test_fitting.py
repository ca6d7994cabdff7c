"""Adapters that were trained on another class of the same model, and those whose layout an older version wrote."""

import copy
import json
import re
import shutil

import pytest
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from taia_hub import TAIAForCausalLM, TAIAModel
from taia_hub.errors import UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting import export_adapter
from taia_hub.hub import HubAccess
from taia_hub.merging import merge
from taia_hub.repository.card import describe_files
from taia_hub.repository.creating import create_repository
from taia_hub.repository.info import repository_info
from taia_hub.repository.update_files import open_repository
from tests.conftest import logits

WEIGHTS = "adapter_model.safetensors"
_TEXT = {
    **{"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128},
}
_VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16},
    **{"patch_size": 4, "depth": 1, "num_heads": 2, "out_hidden_size": 16, "spatial_merge_size": 1},
    "num_position_embeddings": 16,
}
_GATED = {
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "rope_parameters": {
        **{"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "mrope_interleaved": True,
    },
}
KINDS = {"qwen3_5": _GATED, "gemma3": {}, "mistral3": {}}


@pytest.fixture(scope="module")
def composite(tmp_path_factory):
    """Folders of a model with an image tower, and of its text part alone, by kind."""
    root = tmp_path_factory.mktemp("composite")

    def make(kind):
        if not (root / kind).is_dir():
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, text_config={**_TEXT, **KINDS[kind]}, vision_config=dict(_VISION))
            whole = AutoModelForImageTextToText.from_config(config)
            whole.save_pretrained(root / kind)
            text = AutoModelForCausalLM.from_config(config.get_text_config())
            text.load_state_dict(
                {
                    **{f"model.{key}": value for key, value in whole.model.language_model.state_dict().items()},
                    "lm_head.weight": whole.lm_head.weight,
                }
            )
            text.save_pretrained(root / f"{kind}-text")
        return root / kind, root / f"{kind}-text"

    return make


def trained(model, folder, config, seed=1):
    """Saves an adapter on a model whose every factor is random, and returns the model."""
    tuned = get_peft_model(model.eval().requires_grad_(False), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return tuned.eval()


def edited(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


_ATTENTION = "q_proj|k_proj|v_proj|o_proj|in_proj_qkv|out_proj"
TARGETS = {
    "regex": {"target_modules": rf"^(?!.*(visual|vision)).*\.({_ATTENTION}|gate_proj|up_proj|down_proj)$"},
    "regex of the text part": {"target_modules": rf".*language_model.*\.({_ATTENTION}|up_proj)"},
    "ranks by path": {
        "target_modules": rf".*language_model.*\.({_ATTENTION}|up_proj)",
        "rank_pattern": {r"model\.language_model\.layers\.1\.mlp\.up_proj": 2, r"language_model.*\.o_proj": 3},
        "alpha_pattern": {"layers.1.mlp.up_proj": 16, r"^model\.language_model\.layers\.1\.self_attn.*": 2},
    },
}


@pytest.mark.parametrize("kind", ["qwen3_5", "mistral3"])
@pytest.mark.parametrize("targets", TARGETS)
def test_a_text_adapter_of_the_class_with_images_loads_on_the_text_alone(composite, pico, tmp_path, kind, targets):
    whole, text = composite(kind)
    config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **TARGETS[targets])
    reference = trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path / "lora", config)

    model, ids = TAIAForCausalLM.from_adapter(text, tmp_path / "lora").eval(), pico.ids()

    assert torch.equal(logits(model, ids, inference_modules="all"), logits(reference, ids))
    with reference.disable_adapter():
        assert torch.equal(logits(model, ids, inference_modules="none"), logits(reference, ids))
    create_repository(str(text), str(tmp_path / "lora"), out=tmp_path / "made")
    model.save_pretrained(tmp_path / "saved")
    for name in ("made", "saved"):  # as the card says, PEFT alone reads what is published
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text), str(tmp_path / name / "adapter"))
        assert torch.equal(logits(plain.eval(), ids), logits(reference, ids))
        again = TAIAForCausalLM.from_pretrained(tmp_path / name, inference_modules="all").eval()
        assert torch.equal(logits(again, ids), logits(reference, ids))
    written, read = (load_file(tmp_path / name / WEIGHTS) for name in ("made/adapter", "lora"))
    assert all(torch.equal(written[key.replace("model.language_model.", "model.")], read[key]) for key in read)


def test_such_an_adapter_is_made_a_repository_of_and_exported(composite, pico, tmp_path):
    whole, text = composite("qwen3_5")
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **TARGETS["ranks by path"])
    reference = trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path / "lora", config)
    create_repository(str(text), str(tmp_path / "lora"), out=tmp_path / "made")
    export_adapter(tmp_path / "made", tmp_path / "export", "all")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text), str(tmp_path / "export")).eval()
    torch.testing.assert_close(logits(model, pico.ids()), logits(reference, pico.ids()))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, task_type="CAUSAL_LM", modules_to_save=["lm_head"], **TARGETS["ranks by path"]),
        LoKrConfig(r=2, alpha=3, task_type="CAUSAL_LM", target_modules=r".*language_model.*\.(q_proj|up_proj)"),
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=r".*language_model.*\.(k_proj|up_proj|down_proj)",
            feedforward_modules=r".*language_model.*\.down_proj",
        ),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_such_an_adapter_is_counted_and_merged_as_it_acts(composite, pico, tmp_path, config):
    whole, text = composite("gemma3")
    reference = trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path / "lora", copy.deepcopy(config))
    edited(tmp_path / "lora", base_model_name_or_path=str(text))
    model = TAIAForCausalLM.from_pretrained(tmp_path / "lora", inference_modules="all").eval()
    assert torch.equal(logits(model, pico.ids()), logits(reference, pico.ids()))
    counted = repository_info(str(tmp_path / "lora")).roles
    status = model.status().roles
    assert {role: (one.modules, one.parameters) for role, one in counted.items()} == {
        role: (one.adapted, one.parameters) for role, one in status.items()
    }
    assert status["attention"].adapted
    assert status["ffn"].adapted
    merge(tmp_path / "lora", tmp_path / "merged", "all")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, pico.ids()), logits(reference, pico.ids()))


def test_training_on_such_an_adapter_writes_the_names_of_this_base(composite, pico, tmp_path):
    whole, text = composite("qwen3_5")
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **TARGETS["ranks by path"])
    trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path / "lora", config)
    model = TAIAForCausalLM.from_adapter(text, tmp_path / "lora", is_trainable=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    model.save_pretrained(tmp_path / "saved")
    assert not any("language_model" in key for key in load_file(tmp_path / "saved/adapter" / WEIGHTS))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text), str(tmp_path / "saved/adapter"))
    assert torch.equal(logits(plain.eval(), pico.ids()), logits(model, pico.ids(), inference_modules="all"))


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], "all-linear", r".*\.(q_proj|fc1|up_proj)"], ids=str)
def test_names_that_also_hit_an_image_tower_mean_the_modules_of_the_file(composite, pico, tmp_path, targets):
    whole, text = composite("gemma3")
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    reference = trained(AutoModelForCausalLM.from_pretrained(text), tmp_path / "lora", config)

    model, ids = TAIAForCausalLM.from_adapter(whole, tmp_path / "lora").eval(), pico.ids()

    assert not [site.path for site in model._taia_switch.sites if "vision" in site.path]
    assert torch.equal(logits(model, ids, inference_modules="all"), logits(reference, ids))


def test_an_adapter_of_the_image_tower_does_not_land_on_the_text(composite, tmp_path):
    whole, text = composite("gemma3")
    config = LoraConfig(r=4, target_modules=r".*vision_tower.*\.q_proj", task_type="CAUSAL_LM")
    trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path, config)
    with pytest.raises(UpdateMismatchError, match="vision_tower"):
        TAIAForCausalLM.from_adapter(text, tmp_path)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "fc1"]}, {"modules_to_save": ["multi_modal_projector"]}], ids=str
)
def test_an_adapter_of_text_and_images_says_which_base_it_needs(composite, tmp_path, options):
    whole, text = composite("gemma3")
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": r".*language_model.*q_proj", **options})
    trained(AutoModelForImageTextToText.from_pretrained(whole), tmp_path, config)
    with pytest.raises(UpdateMismatchError, match="of no adapted module") as caught:
        TAIAForCausalLM.from_adapter(text, tmp_path)
    assert "image or audio tower" in caught.value.hint


def test_a_module_that_the_file_lacks_among_the_layers_is_still_missed(composite, tmp_path):
    _, text = composite("gemma3")
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    trained(AutoModelForCausalLM.from_pretrained(text), tmp_path, config)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({key: value for key, value in tensors.items() if "layers.1.mlp" not in key}, tmp_path / WEIGHTS)
    with pytest.raises(UpdateMismatchError, match="missing"):
        TAIAForCausalLM.from_adapter(text, tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_an_adapter_of_a_backbone_that_does_not_say_so_loads_with_the_head(pico, tmp_path, name):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    reference = trained(AutoModel.from_pretrained(pico.base(name)), tmp_path, config)
    edited(tmp_path, auto_mapping=None)
    model = TAIAModel.from_adapter(pico.base(name), tmp_path, inference_modules="all").eval()
    with torch.no_grad():
        expected = reference(input_ids=pico.ids()).last_hidden_state
        assert torch.equal(model(input_ids=pico.ids()).last_hidden_state, expected)


# --- Names that were not freed from what wrapped the model ---------------------------------------------------------
WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled by layer": lambda key: re.sub(r"(layers\.\d+)", r"\1._orig_mod", key),
    "FSDP": lambda key: re.sub(r"(layers\.\d+)", r"_fsdp_wrapped_module.\1._fsdp_wrapped_module", key),
    "activation checkpointing": lambda key: re.sub(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module", key),
    "DDP": lambda key: f"module.{key}",
    "with the adapter's name": lambda key: key.replace(".weight", ".french.weight"),
    "with a name that has a dot": lambda key: key.replace(".weight", ".v1.5.weight"),
    "without PEFT's prefix": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_names_that_say_how_the_model_was_wrapped_mean_the_modules_in_it(pico, tmp_path, wrapped):
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    save_file({WRAPPED[wrapped](key): tensor for key, tensor in tensors.items()}, tmp_path / "lora" / WEIGHTS)
    create_repository(str(pico.base("llama")), str(tmp_path / "lora"), out=tmp_path / "made")
    assert load_file(tmp_path / "made/adapter" / WEIGHTS).keys() == tensors.keys()
    model = TAIAForCausalLM.from_pretrained(tmp_path / "made", inference_modules="all").eval()
    reference = logits(pico.peft("llama", pico.adapter("llama")), pico.ids())
    assert torch.equal(logits(model, pico.ids()), reference)
    assert torch.equal(logits(pico.peft("llama", tmp_path / "made/adapter"), pico.ids()), reference)


def test_a_module_that_a_file_with_wrapped_names_lacks_is_still_missed(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    kept = {f"_orig_mod.{key}": tensor for key, tensor in tensors.items() if "layers.1.mlp.up_proj" not in key}
    save_file(kept, tmp_path / "lora" / WEIGHTS)
    with pytest.raises(UpdateMismatchError, match="2 tensors are missing"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "lora")


# --- Experts -------------------------------------------------------------------------------------------------------
def by_expert(base, folder, r=4, alpha=8, **config):
    """Writes an adapter as transformers 4 knew the experts, one linear layer each, and merges it into the base."""
    torch.manual_seed(2)
    tensors, size = {}, base.config.intermediate_size
    if base.config.model_type == "mixtral":
        inside, gate, up, down = "block_sparse_moe", "w1", "w3", "w2"
    else:
        inside, gate, up, down = "mlp", "gate_proj", "up_proj", "down_proj"
        size = base.config.moe_intermediate_size

    def add(path, weight):
        a, b = torch.randn(r, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], r) * 0.2
        tensors[f"base_model.model.{path}.lora_A.weight"], tensors[f"base_model.model.{path}.lora_B.weight"] = a, b
        weight += alpha / r * b @ a

    for number, layer in enumerate(base.model.layers):
        path = f"model.layers.{number}"
        add(f"{path}.self_attn.q_proj", layer.self_attn.q_proj.weight.data)
        experts = layer.mlp.experts
        for one in range(len(experts.gate_up_proj)):
            add(f"{path}.{inside}.experts.{one}.{gate}", experts.gate_up_proj.data[one, :size])
            add(f"{path}.{inside}.experts.{one}.{up}", experts.gate_up_proj.data[one, size:])
            add(f"{path}.{inside}.experts.{one}.{down}", experts.down_proj.data[one])
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    values = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "task_type": "CAUSAL_LM", "bias": "none"}
    targets = ["q_proj", gate, up, down]
    (folder / "adapter_config.json").write_text(json.dumps({**values, "target_modules": targets, **config}))
    return base


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_factors_by_expert_act_as_they_did(pico, tmp_path, name, dropout):
    reference = by_expert(pico.plain(name), tmp_path / "lora", lora_dropout=dropout)
    model = TAIAForCausalLM.from_adapter(pico.base(name), tmp_path / "lora", inference_modules="all").eval()
    torch.testing.assert_close(logits(model, pico.ids()), logits(reference, pico.ids()), rtol=1e-4, atol=1e-5)
    create_repository(str(pico.base(name)), str(tmp_path / "lora"), out=tmp_path / "made")
    info, access = repository_info(str(tmp_path / "made")), HubAccess()
    card = describe_files(open_repository(tmp_path / "made", access), access, repo_id="o/m", license_fields={})
    for roles in (info.roles, card.parts):
        assert roles["ffn"].parameters > roles["attention"].parameters > roles["other"].parameters == 0
    if dropout:
        with pytest.raises(UnsupportedUpdateError, match="dropout"):
            TAIAForCausalLM.from_adapter(pico.base(name), tmp_path / "lora", is_trainable=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_rslora": True}, "root of the rank"),
        ({"alpha_pattern": {"w1": 32}}, "alpha_pattern"),
        ({"rank_pattern": {r".*\.experts\..*": 4}}, "rank_pattern"),
    ],
)
def test_factors_by_expert_that_peft_would_scale_otherwise_are_refused(pico, tmp_path, options, reason):
    by_expert(pico.plain("mixtral"), tmp_path / "lora", **options)
    with pytest.raises(UnsupportedUpdateError, match=reason):
        TAIAForCausalLM.from_adapter(pico.base("mixtral"), tmp_path / "lora")


def as_of_018(folder, experts):
    """Writes the factors of stacked experts with their sides exchanged, as PEFT 0.18 had them."""
    tensors = load_file(folder / WEIGHTS)
    for key in [key for key in tensors if ".experts." in key and "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        a, b = tensors[key], tensors[other]
        rank = len(a) // experts
        tensors[key] = b.reshape(len(b), rank, experts).permute(2, 1, 0).reshape(experts * rank, len(b)).contiguous()
        tensors[other] = a.reshape(experts, rank, -1).permute(2, 1, 0).reshape(a.shape[1], -1).contiguous()
    save_file(tensors, folder / WEIGHTS)
    edited(folder, peft_version="0.18.1")


@pytest.mark.parametrize("name", ["mixtral"])
def test_stacked_experts_whose_sides_an_older_version_exchanged(pico, tmp_path, name):
    folder = shutil.copytree(pico.adapter(name), tmp_path / "lora")
    reference = logits(pico.peft(name, folder), pico.ids())
    as_of_018(folder, 4)
    model = TAIAForCausalLM.from_adapter(pico.base(name), folder, inference_modules="all").eval()
    assert torch.equal(logits(model, pico.ids()), reference)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(pico.peft(name, tmp_path / "saved/adapter"), pico.ids()), reference)


@pytest.mark.parametrize("version", ["0.17.1", "0.18.1", "0.19.0", None])
def test_square_experts_of_an_older_version_are_refused(pico, tmp_path, version):
    """Two times the experts' size is the hidden size, so that no shape says which side is which."""
    folder = shutil.copytree(pico.adapter("qwen3_moe"), tmp_path / "lora")
    edited(folder, peft_version=version)
    with pytest.raises(UnsupportedUpdateError, match="square"):
        TAIAForCausalLM.from_adapter(pico.base("qwen3_moe"), folder)
