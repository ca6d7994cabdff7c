"""Every method that PEFT knows either works in every mode, exactly, or is refused with the reason."""

import json
import shutil

import peft
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import SettingError, TAIAError, UnsupportedUpdateError
from taia_hub.repository.creating import create_repository
from taia_hub.repository.info import repository_info
from taia_hub.updates.parts import parts_by_role
from tests.conftest import logits

MODES = ["none", "attention", "ffn", "all"]
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]
# The options that fit a hidden size of 16; every method has the same four target modules unless it says otherwise.
WORKS = {
    "LORA": {"r": 4},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 10},
    "FROD": {},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LILY": {"r": 4},
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "OSF": {},
    "PEANUT": {},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [3, 4, 5, 41]},
    "UNILORA": {"r": 4},
    "VBLORA": {"r": 2, "vector_length": 4, "num_vectors": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 10},
}
# What they update is neither attention nor FFN.
ONLY_OTHER = {"LN_TUNING", "TRAINABLE_TOKENS"}
# Their layers share tensors whose size or draw depends on all adapted modules, so a narrowed adapter is another one.
SHARED = {"FROD", "PVERA", "RANDLORA", "TINYLORA", "UNILORA", "VERA"}
REFUSED = {
    "ADAPTION_PROMPT": "no layer that can be switched",
    "CARTRIDGE": "prompt learning",
    "CPT": "prompt learning",
    "MULTITASK_PROMPT_TUNING": "prompt learning",
    "P_TUNING": "prompt learning",
    "POLY": "task ids",
    "PREFIX_TUNING": "prompt learning",
    "PROMPT_TUNING": "prompt learning",
    "SHADOW": "second stream",
    "XLORA": "gates",
}


def config_of(method):
    options = {"target_modules": TARGETS, "task_type": "CAUSAL_LM", **WORKS[method]}
    return PEFT_TYPE_TO_CONFIG_MAPPING[getattr(peft.PeftType, method)](**options)


def with_roles(reference, roles):
    """PEFT's own switch, set layer by layer: an update stays on where its path holds one of the names."""
    for path, module in reference.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            module._disable_adapters = not any(role in path for role in roles)
    return reference


def assert_exact(model, base, reference, ids, other=False):
    expected = {
        "none": logits(base, ids),
        "all": logits(reference, ids),
        "attention": logits(with_roles(reference, ["self_attn"]), ids),
        "ffn": logits(with_roles(reference, ["mlp"]), ids),
    }
    results = {mode: logits(model, ids, inference_modules=mode) for mode in MODES}
    for mode in MODES:
        assert torch.equal(results[mode], expected[mode]), mode
    changed = {mode for mode in MODES if not torch.equal(results[mode], results["none"])}
    assert changed == ({"all"} if other else {"attention", "ffn", "all"})


def test_every_method_of_peft_is_known_here():
    """A method that PEFT adds is tried before it is trusted: put it into WORKS or REFUSED."""
    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}

    assert not set(WORKS) & set(REFUSED)
    assert known <= set(WORKS) | set(REFUSED)


def known_here(methods):
    names = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    return sorted(name for name in methods if name in names)


@pytest.mark.parametrize("method", known_here(WORKS))
def test_modes_of_a_method_are_exact(pico, method):
    folder = pico.adapter("llama", config_of(method), method)
    model, base, ids = pico.taia("llama", method), pico.plain("llama"), pico.ids()

    reference = pico.peft("llama", folder)
    assert_exact(model, base, reference, ids, other=method in ONLY_OTHER)


@pytest.mark.parametrize("role", ["attention", "ffn"])
@pytest.mark.parametrize("method", known_here(set(WORKS) - ONLY_OTHER - SHARED))
def test_a_role_equals_the_narrowed_adapter(pico, method, role):
    pico.adapter("llama", config_of(method), method)
    options = {"feedforward_modules": []} if (method, role) == ("IA3", "attention") else {}
    narrowed = pico.narrowed("llama", role, method, TARGETS[:2] if role == "attention" else TARGETS[2:], **options)

    result = logits(pico.taia("llama", method), pico.ids(), inference_modules=role)

    assert torch.equal(result, logits(pico.peft("llama", narrowed), pico.ids()))


@pytest.mark.parametrize("method", known_here(set(WORKS) - {"LORA"}))
def test_a_method_refuses_what_it_cannot_do(pico, method):
    pico.adapter("llama", config_of(method), method)
    model, ids = pico.taia("llama", method), pico.ids()
    before = logits(model, ids)

    with pytest.raises(SettingError, match="takes only 0 or 1"):
        model.inference_modules = {"*": 0.5}
    with pytest.raises(SettingError, match="alike"):
        logits(model, ids, inference_modules=["none", "all"])

    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("method", known_here(WORKS))
def test_a_repository_of_a_method_is_made_without_the_bases_weights(pico, method, tmp_path):
    folder = pico.adapter("llama", config_of(method), method)
    create_repository(str(pico.base("llama")), str(folder), out=tmp_path / "made")
    model = TAIAForCausalLM.from_pretrained(tmp_path / "made", inference_modules="all").eval()
    assert torch.equal(logits(model, pico.ids()), logits(pico.peft("llama", folder), pico.ids()))


@pytest.mark.parametrize("method", known_here(["IA3", "LOHA", "PVERA", "RANDLORA", "SHIRA", "SUPERTUNING", "VERA"]))
def test_info_counts_what_status_counts(pico, method):
    """Projections and indices that are saved along and never trained are no parameters."""
    counted = repository_info(str(pico.adapter("llama", config_of(method), method))).roles
    status = pico.taia("llama", method).status().roles
    assert {role: (one.modules, one.parameters) for role, one in counted.items()} == {
        role: (one.adapted, one.parameters) for role, one in status.items()
    }


@pytest.mark.parametrize("method", known_here(REFUSED))
def test_a_method_is_refused_with_the_reason(pico, method, tmp_path):
    """The configuration alone decides, before the base is changed."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method, "task_type": "CAUSAL_LM"}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")

    with pytest.raises(UnsupportedUpdateError, match=REFUSED[method]) as error:
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path)

    assert "PeftModel.from_pretrained" in error.value.hint


# --- Options of LoRA -----------------------------------------------------------------------------------------------
def lora(**options):
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options})


VARIANTS = {
    "dora": {"use_dora": True},
    "embeddings": {"target_modules": [*TARGETS, "embed_tokens", "lm_head"]},
    "dora_embeddings": {"target_modules": [*TARGETS, "embed_tokens"], "use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "all_linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", VARIANTS)
def test_modes_of_a_lora_variant_are_exact(pico, label, dtype):
    folder = pico.adapter("llama", lora(**VARIANTS[label]), label)

    model, reference = pico.taia("llama", label, dtype=dtype), pico.peft("llama", folder, dtype=dtype)

    assert_exact(model, pico.plain("llama", dtype=dtype), reference, pico.ids())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", ["head_saved", "norm_saved", "tokens", "mlp_saved"])
def test_whole_modules_and_tokens_are_switched(pico, label, dtype):
    options = {
        "head_saved": {"modules_to_save": ["lm_head"]},
        "norm_saved": {"modules_to_save": ["norm", "post_attention_layernorm"]},
        "tokens": {"trainable_token_indices": [3, 4, 41]},
        "mlp_saved": {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["mlp"]},
    }[label]
    folder = pico.adapter("llama", lora(**options), label)
    model, reference = pico.taia("llama", label, dtype=dtype), pico.peft("llama", folder, dtype=dtype)

    assert_exact(model, pico.plain("llama", dtype=dtype), reference, pico.ids())
    status = model.status()
    if label == "mlp_saved":
        assert status.roles["ffn"].adapted == 2
    else:
        assert status.roles["other"].adapted > 0
        assert status.roles["other"].masked == status.roles["other"].adapted


def test_other_updates_act_when_they_are_asked_for(pico):
    folder = pico.adapter("llama", lora(modules_to_save=["lm_head"]), "head_saved")
    model, reference, ids = pico.taia("llama", "head_saved"), pico.peft("llama", folder), pico.ids()

    result = logits(model, ids, inference_modules="attention+other")

    assert torch.equal(result, logits(with_roles(reference, ["self_attn", "lm_head"]), ids))
    assert not torch.equal(result, logits(model, ids, inference_modules="attention"))


def test_rows_differ_in_saved_modules_and_embeddings(pico):
    for label, options in {
        "head_saved": {"modules_to_save": ["lm_head"]},
        "embeddings": VARIANTS["embeddings"],
    }.items():
        pico.adapter("llama", lora(**options), label)
        model, ids = pico.taia("llama", label), pico.ids(4)
        mixed = logits(model, ids, inference_modules=MODES)
        for row, mode in enumerate(MODES):
            single = logits(model, ids[row : row + 1], inference_modules=mode)
            torch.testing.assert_close(mixed[row : row + 1], single, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_switched_together(pico, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(pico.base("llama"), tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "tied")
    model = get_peft_model(base, lora(trainable_token_indices=[3, 4, 41]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    load = AutoModelForCausalLM.from_pretrained
    reference = peft.PeftModel.from_pretrained(load(tmp_path / "tied"), str(tmp_path / "adapter")).eval()

    taia = TAIAForCausalLM.from_adapter(tmp_path / "tied", tmp_path / "adapter").eval()

    ids = pico.ids()
    assert torch.equal(logits(taia, ids, inference_modules="none"), logits(load(tmp_path / "tied").eval(), ids))
    assert torch.equal(logits(taia, ids, inference_modules="all"), logits(reference, ids))
    parts = parts_by_role(taia._taia_update.head_model, taia._taia_switch.sites)
    assert parts["other"].modules == taia.status().roles["other"].adapted == 2


REFUSED_OPTIONS = {
    "pissa": ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
    "pissa_niter": ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
    "olora": ({"init_lora_weights": "olora"}, "changes the base model's weights"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "alora": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "kasa": ({"kasa_config": {}}, "singular values off the base model's weights"),
    "monteclora": ({"monteclora_config": {}}, "sampler"),
}
REFUSED_OPTIONS = {  # those that the PEFT at hand has
    label: one for label, one in REFUSED_OPTIONS.items() if one[0].keys() <= LoraConfig.__dataclass_fields__.keys()
}


@pytest.mark.parametrize("label", REFUSED_OPTIONS)
def test_an_option_of_lora_is_refused_with_the_reason(pico, label, tmp_path):
    options, reason = REFUSED_OPTIONS[label]
    config = lora(**options)
    config.inference_mode = True
    config.save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")

    with pytest.raises(UnsupportedUpdateError, match=reason):
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path)


@pytest.mark.parametrize(
    "options", [{"bias": "all"}, {"bias": "lora_only"}, {"bias": "all", "modules_to_save": ["lm_head"]}], ids=str
)
def test_an_option_for_biases_does_nothing_on_a_base_that_has_none(pico, options, tmp_path):
    get_peft_model(pico.plain("llama"), lora(init_lora_weights=False, **options)).save_pretrained(tmp_path)

    taia, ids = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path).eval(), pico.ids()

    assert torch.equal(logits(taia, ids, inference_modules="none"), logits(pico.plain("llama"), ids))
    assert torch.equal(logits(taia, ids, inference_modules="all"), logits(pico.peft("llama", tmp_path), ids))


def test_biases_of_the_base_in_the_file_are_refused_with_their_number(pico, tmp_path):
    config = LoraConfig(r=4, target_modules=["c_attn"], bias="all", task_type="CAUSAL_LM", fan_in_fan_out=True)
    get_peft_model(pico.plain("gpt2"), config).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedUpdateError, match=r"overwrites \d+ of the base model's biases"):
        TAIAForCausalLM.from_adapter(pico.base("gpt2"), tmp_path)


@pytest.mark.parametrize(("version", "loads"), [(None, False), ("0.17.1", False), ("0.18.0", True)])
def test_a_rotation_that_means_something_else_since_it_was_trained_is_refused(pico, version, loads, tmp_path):
    """PEFT only warns, and gives other numbers."""
    config = peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=True, target_modules=TARGETS)
    get_peft_model(pico.plain("llama"), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_version": version}))
    if loads:
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path)
        return
    with pytest.raises(TAIAError, match="another rotation"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_converted_adapter_of_such_an_option_loads(pico, init, tmp_path):
    """The way out that the message names: PEFT turns it into a plain LoRA of twice the rank."""
    model = get_peft_model(pico.plain("llama"), lora(init_lora_weights=init, target_modules=["q_proj", "up_proj"]))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.1)
    model.peft_config["default"].init_lora_weights = init
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))

    taia = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "plain").eval()

    ids = pico.ids()
    assert torch.equal(logits(taia, ids, inference_modules="none"), logits(pico.plain("llama"), ids))
    with torch.no_grad():
        torch.testing.assert_close(logits(taia, ids, inference_modules="all"), model.eval()(ids).logits)


def test_embeddings_in_the_file_that_were_changed_are_exchanged(pico, tmp_path):
    """PEFT saves embeddings along, and puts them in place of the base's in every mode."""
    model = get_peft_model(pico.plain("llama"), lora(init_lora_weights=False))
    model.get_input_embeddings().weight.data[5] += 1
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert any("embed_tokens" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))

    taia, ids = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "adapter").eval(), torch.tensor([[5, 9]])

    assert torch.equal(logits(taia, ids, inference_modules="none"), logits(pico.plain("llama"), ids))
    assert torch.equal(logits(taia, ids, inference_modules="all"), logits(model.eval(), ids))
    status = taia.status().roles["other"]
    assert (status.adapted, status.parameters) == (1, 64 * 16)
    taia.save_pretrained(tmp_path / "taia")
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "taia" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_mixed_setting_of_whole_methods_is_possible(pico):
    """0 and 1 by role, layer or path need no weight in between."""
    for method, config in (("IA3", IA3Config), ("ADALORA", AdaLoraConfig)):
        assert isinstance(config_of(method), config)
        folder = pico.adapter("llama", config_of(method), method)
        model, reference = pico.taia("llama", method), pico.peft("llama", folder)
        setting = {"attention": 1, "ffn@1": 1.0, "*.o_proj": 0}

        result = logits(model, pico.ids(), inference_modules=setting)

        on = ["q_proj", "layers.1.mlp"]
        assert torch.equal(result, logits(with_roles(reference, on), pico.ids()))


@pytest.mark.parametrize("target_r", [1, 3])
def test_an_adalora_that_has_given_up_ranks_is_published(pico, tmp_path, target_r):
    """PEFT finds its ranks by values, and a repository is made without the base's weights."""
    config = AdaLoraConfig(
        init_r=4, target_r=target_r, total_step=8, tinit=1, tfinal=2, deltaT=1, target_modules=TARGETS
    )
    config.task_type = "CAUSAL_LM"
    model, ids = get_peft_model(pico.plain("llama"), config), pico.ids()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if parameter.requires_grad else 0)
    for step in range(8):
        model(input_ids=ids, labels=ids).loss.backward()
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path / "adapter")
    left = [sum(ranks) for ranks in model.peft_config["default"].rank_pattern.values()]
    assert sum(left) == target_r * 2 * len(TARGETS)
    assert target_r > 1 or 0 in left

    create_repository(str(pico.base("llama")), str(tmp_path / "adapter"), out=tmp_path / "made")

    taia = TAIAForCausalLM.from_pretrained(tmp_path / "made").eval()
    reference = pico.peft("llama", tmp_path / "adapter")
    assert torch.equal(logits(taia, ids, inference_modules="all"), logits(reference, ids))
    assert torch.equal(logits(taia, ids, inference_modules="none"), logits(pico.plain("llama"), ids))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn], ids=str)
def test_factors_of_an_odd_dtype_act_as_in_peft(pico, tmp_path, dtype):
    folder = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: (tensor * 3).to(dtype) for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    create_repository(str(pico.base("llama")), str(folder), out=tmp_path / "made")
    model = TAIAForCausalLM.from_pretrained(tmp_path / "made", inference_modules="all").eval()
    assert torch.equal(logits(model, pico.ids()), logits(pico.peft("llama", folder), pico.ids()))
