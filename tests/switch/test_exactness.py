"""The modes are exact: bit for bit the base model, PEFT's model, and PEFT's model with one role's modules alone."""

import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from tests.conftest import logits

ALL = ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe", "qwen2_moe", "jamba", "qwen3_next"]
VARIANTS = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "1.mlp.*": 8}, "alpha_pattern": {"v_proj": 1, "up_proj": 32}},
    "bias": {"lora_bias": True},
    "layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "o_proj", "down_proj"]},
    "dropout": {"lora_dropout": 0.3},
}


def assert_exact(pico, name, model, references, ids):
    """The modes equal the references bit for bit, and differ from one another."""
    results = {mode: logits(model, ids, inference_modules=mode) for mode in ("none", "attention", "ffn", "all")}
    for mode, reference in references.items():
        assert torch.equal(results[mode], logits(reference, ids)), mode
    assert len({tuple(result.flatten().tolist()) for result in results.values()}) == 4


def references(pico, name, label, **keywords):
    autocast = keywords.pop("autocast_adapter_dtype", True)
    return {  # frozen as a TAIA model's base is: torch multiplies by weights to be trained in another way
        "none": pico.plain(name, **keywords).requires_grad_(False),
        "all": pico.peft(name, pico.adapter(name, label=label), autocast, **keywords),
        "attention": pico.peft(name, pico.narrowed(name, "attention", label), autocast, **keywords),
        "ffn": pico.peft(name, pico.narrowed(name, "ffn", label), autocast, **keywords),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_modes_are_exact(pico, name, dtype):
    model = pico.taia(name, dtype=dtype)

    assert_exact(pico, name, model, references(pico, name, "lora", dtype=dtype), pico.ids())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_modes_are_exact_with_a_16_bit_adapter(pico, name):
    options = {"dtype": torch.bfloat16, "autocast_adapter_dtype": False}
    model = pico.taia(name, **options)
    adapted = [parameter for key, parameter in model.named_parameters() if "lora_A" in key]

    assert {parameter.dtype for parameter in adapted} == {torch.bfloat16}
    assert_exact(pico, name, model, references(pico, name, "lora", **options), pico.ids())


@pytest.mark.parametrize("label", VARIANTS)
def test_modes_are_exact_for_the_options_of_lora(pico, label):
    pico.adapter("llama", pico.lora("llama", **VARIANTS[label]), label)
    if label == "layers":
        pico.narrowed("llama", "attention", label, ["q_proj", "o_proj"])
        pico.narrowed("llama", "ffn", label, ["down_proj"])
    model = pico.taia("llama", label)

    assert_exact(pico, "llama", model, references(pico, "llama", label), pico.ids())


@pytest.mark.parametrize("weight", [0.25, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_weight_equals_scaling_the_layers(pico, name, weight):
    model = pico.taia(name)
    reference = pico.peft(name, pico.adapter(name))
    for module in reference.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(weight)

    result = logits(model, pico.ids(), inference_modules={"*": weight})

    assert torch.equal(result, logits(reference, pico.ids()))


def test_a_weight_by_role_and_layer_equals_scaling_these_layers(pico):
    model = pico.taia("llama")
    reference = pico.peft("llama", pico.adapter("llama"))
    for path, module in reference.named_modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(1.0 if "self_attn" in path else 0.5 if ".layers.1." in path else 0.0)

    result = logits(model, pico.ids(), inference_modules={"attention": 1, "ffn@1": 0.5})

    assert torch.equal(result, logits(reference, pico.ids()))


def test_gradients_equal_those_of_peft(pico):
    model = pico.taia("llama", is_trainable=True)
    reference = pico.peft("llama", pico.adapter("llama"))
    for path, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in path)
    ids = pico.ids()

    model(input_ids=ids, labels=ids).loss.backward()
    reference(input_ids=ids, labels=ids).loss.backward()

    expected = {key.removeprefix("base_model.model."): value.grad for key, value in reference.named_parameters()}
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (expected[key] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, expected[key])


@pytest.mark.parametrize("role", ["attention", "ffn"])
def test_a_masked_role_gets_no_gradient(pico, role):
    model = pico.taia("llama", is_trainable=True)
    ids = pico.ids()

    model(input_ids=ids, labels=ids, inference_modules=role).loss.backward()

    trained = {"self_attn" in key for key, value in model.named_parameters() if value.grad is not None}
    assert trained == {role == "attention"}


def test_training_mode_applies_the_dropout_of_peft(pico):
    pico.adapter("llama", pico.lora("llama", lora_dropout=0.3), "dropout")
    model = pico.taia("llama", "dropout").train()
    reference = pico.peft("llama", pico.adapter("llama", label="dropout")).train()

    torch.manual_seed(3)
    result = logits(model, pico.ids(), inference_modules="all")
    torch.manual_seed(3)

    assert torch.equal(result, logits(reference, pico.ids()))


def test_a_hook_on_the_base_layer_sees_the_base_output(pico):
    """The lean forward adds in place only where nobody else holds the base layer's output."""
    model = pico.taia("llama", inference_modules="all")
    layer = model.model.layers[0].self_attn.q_proj
    seen = []
    layer.base_layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))

    logits(model, pico.ids())

    x, output = seen[0]
    assert torch.equal(output, torch.nn.functional.linear(x, layer.base_layer.weight))


def test_a_keyword_for_the_base_layer_leaves_the_weight_in_force(pico):
    class Scaled(torch.nn.Linear):
        def forward(self, x, factor=1.0):
            return super().forward(x) * factor

    model, x = pico.taia("llama"), torch.randn(2, 3, 16)
    layer = model.model.layers[0].self_attn.q_proj
    layer.base_layer.__class__ = Scaled

    with torch.no_grad():
        base = layer.base_layer(x, factor=2.0)
        for weight in (0, 0.5, 1):
            with model.using({"attention": weight}):
                update = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"] * weight
                torch.testing.assert_close(layer(x, factor=2.0), base + update)


@pytest.mark.slow
def test_modes_are_exact_on_real_weights(pico, smollm2, tmp_path):
    from peft import PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from taia_hub import TAIAForCausalLM

    attention, ffn = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=[*attention, *ffn], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    whole = get_peft_model(AutoModelForCausalLM.from_pretrained(smollm2), config)
    for key, parameter in whole.named_parameters():
        if "lora_" in key:
            parameter.data.mul_(0.3)
    whole.save_pretrained(tmp_path / "all")
    base = whole.unload().eval()
    tensors = load_file(tmp_path / "all" / "adapter_model.safetensors")
    for role, targets, place in (("attention", attention, "self_attn"), ("ffn", ffn, "mlp")):
        part = LoraConfig.from_pretrained(tmp_path / "all")
        part.target_modules = targets
        part.save_pretrained(tmp_path / role)
        kept = {key: value for key, value in tensors.items() if place in key}
        assert kept
        save_file(kept, tmp_path / role / "adapter_model.safetensors")
    ids = AutoTokenizer.from_pretrained(smollm2)("The capital of France is Paris.", return_tensors="pt").input_ids
    model = TAIAForCausalLM.from_adapter(smollm2, tmp_path / "all").eval()

    results = {mode: logits(model, ids, inference_modules=mode) for mode in ("none", "attention", "ffn", "all")}
    del model

    assert torch.equal(results["none"], logits(base, ids))
    for mode in ("attention", "ffn", "all"):
        reference = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / mode)).eval()
        assert torch.equal(results[mode], logits(reference, ids)), mode
        assert not torch.equal(results[mode], results["none"])
