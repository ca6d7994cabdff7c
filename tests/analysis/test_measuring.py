"""Norms from the files equal those of PEFT's own difference; hidden states are compared as the definitions say."""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from taia_hub.analysis import (
    Analysis,
    Subject,
    analyze_update,
    examine_texts,
    load_analysis,
    measure_states,
)
from taia_hub.analysis import hidden as hidden_module
from taia_hub.analysis.density import density
from taia_hub.analysis.examining import examine, matching_results, read_texts
from taia_hub.analysis.measures import cosine_similarity, relative_residual
from taia_hub.analysis.spectra import norms, spectrum_of_matrix, spectrum_of_product
from taia_hub.errors import (
    ConfigError,
    RepositoryError,
    SettingError,
    TAIAError,
    UnsupportedUpdateError,
    UpdateMismatchError,
)
from taia_hub.results import ModelIdentity, Results
from taia_hub.updates.peft.methods import ADDITIVE
from taia_hub.weights.checkpoint import StoredTensor

TEXTS = ["the cat sat on the mat.", "a.", "hello there you"]
MODES = ["none", "attention", "ffn", "all"]
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]
# What fits a hidden size of 16; the other methods take their defaults.
OPTIONS = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "VBLORA": {"r": 2, "vector_length": 4, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 10},
}
LORA_VARIANTS = {
    "rank-stabilised": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"down_proj": 11},
    },
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved head": {"modules_to_save": ["lm_head"]},
}


def config_of(method):
    options = {"target_modules": TARGETS, "task_type": "CAUSAL_LM", **OPTIONS.get(method, {"r": 4})}
    return PEFT_TYPE_TO_CONFIG_MAPPING[getattr(peft.PeftType, method)](**options)


def deltas_of(reference):
    """What PEFT itself says that each module adds, and the weight it is added to, by the path in the base model."""
    found = {}
    for name, layer in reference.base_model.model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not hasattr(layer, "get_delta_weight"):
            continue
        path = name.replace(".base_layer", "")
        parameter = getattr(layer, "parameter_name", None)
        weight = layer.get_base_layer().weight if parameter is None else layer.get_param()
        delta = layer.get_delta_weight("default").detach()
        delta = delta.to_dense() if delta.is_sparse else delta
        found[path if parameter is None else f"{path}.{parameter}"] = delta.double(), weight.detach().double()
    return found


def assert_equals_peft(pico, name, adapter):
    expected = deltas_of(pico.peft(name, adapter))
    found = analyze_update(str(adapter), relative=True)
    measured = {module.path: module for module in found.modules if module.frobenius is not None}
    assert measured.keys() == expected.keys()
    for path, (delta, weight) in expected.items():
        module, values = measured[path], torch.linalg.svdvals(delta)
        shares = values / values.sum(-1, keepdim=True)
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum(-1)
        assert module.frobenius == pytest.approx(delta.norm().item(), rel=1e-5), path
        assert module.spectral == pytest.approx(values.max().item(), rel=1e-5), path
        assert module.effective_rank == pytest.approx(entropy.exp().mean().item(), rel=1e-3), path
        stable = values.square().sum(-1) / values.amax(-1).square()
        assert module.stable_rank == pytest.approx(stable.mean().item(), rel=1e-4), path
        assert module.base_frobenius == pytest.approx(weight.norm().item(), rel=1e-5), path
        assert module.base_spectral == pytest.approx(torch.linalg.matrix_norm(weight, 2).max().item(), rel=1e-4), path
        assert sorted(module.shape) == sorted(delta.shape), path
    return found


# --- Norms ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe", "qwen2_moe", "jamba", "qwen3_next", "xlnet"],
)
def test_norms_equal_those_of_peft_s_difference(pico, name):
    found = assert_equals_peft(pico, name, pico.adapter(name))
    model = pico.taia(name)
    sites = {site.path: site for site in model._taia_switch.sites}
    assert {module.path: (module.role, module.layer, module.parameters) for module in found.modules} == {
        path: (site.role, site.layer, site.parameters) for path, site in sites.items()
    }


@pytest.mark.parametrize("label", LORA_VARIANTS)
def test_norms_of_lora_s_options_equal_peft_s(pico, label):
    adapter = pico.adapter("llama", pico.lora("llama", **LORA_VARIANTS[label]), f"analysis-{label}")
    found = assert_equals_peft(pico, "llama", adapter)
    assert (label == "dora") == any("DoRA" in note for note in found.notes)
    if label == "patterns":
        ranks = {module.path: module.rank for module in found.modules}
        assert ranks["model.layers.0.self_attn.q_proj"] == 2
        assert ranks["model.layers.1.mlp.up_proj"] == 7
        assert ranks["model.layers.0.mlp.up_proj"] == 4
    if label == "saved head":
        (head,) = [module for module in found.modules if module.path == "lm_head"]
        assert head.frobenius is None
        assert head.parameters == 64 * 16
        assert any("lm_head" in note and "copy" in note for note in found.notes)


@pytest.mark.parametrize("method", [name for name in ADDITIVE if name != "LORA" and hasattr(peft.PeftType, name)])
def test_norms_of_other_additive_methods_equal_peft_s(pico, method):
    adapter = pico.adapter("llama", config_of(method), f"analysis-{method}")
    found = assert_equals_peft(pico, "llama", adapter)
    assert found.method == method


def test_a_tensor_of_no_module_is_refused_as_when_loading(pico, tmp_path):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.nothing.lora_A.weight"] = torch.zeros(4, 16)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UpdateMismatchError, match="of no adapted module"):
        analyze_update(str(adapter))


def test_an_old_adapter_of_single_experts_is_measured_as_peft_converts_it(pico, tmp_path):
    """PEFT fuses w1 and w3 to one parameter of twice the rank: such a file cannot be streamed by its names."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    config.base_model_name_or_path, config.inference_mode = str(pico.base("mixtral")), True
    config.save_pretrained(tmp_path)
    shapes = {}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes[f"{layer}.self_attn.q_proj"] = (16, 16)
        for expert in range(4):
            for name, shape in {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}.items():
                shapes[f"{layer}.block_sparse_moe.experts.{expert}.{name}"] = shape
    tensors = {}
    for path, (out, into) in shapes.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(4, into)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out, 4)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = assert_equals_peft(pico, "mixtral", tmp_path)
    assert {module.rank for module in found.modules if "gate_up" in module.path} == {8}


def test_a_tied_head_has_the_norm_of_the_embeddings(pico):
    adapter = pico.adapter("gpt2", LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"), "head")
    (head,) = analyze_update(str(adapter), relative=True).modules
    assert head.role == "other"
    assert head.layer is None
    weight = pico.plain("gpt2").lm_head.weight
    assert head.base_frobenius == pytest.approx(weight.norm().item(), rel=1e-5)


def test_parts_are_put_together_by_role_and_layer(pico):
    found = analyze_update(str(pico.adapter("llama")), relative=True)
    chosen = [module for module in found.modules if module.role == "ffn" and module.layer == 1]
    part = found.by_layer[1, "ffn"]
    assert len(chosen) == part.modules == 3
    assert part.parameters == sum(module.parameters for module in chosen)
    assert part.frobenius == pytest.approx(math.sqrt(sum(module.frobenius**2 for module in chosen)))
    assert part.spectral == max(module.spectral for module in chosen)
    base = math.sqrt(sum(module.base_frobenius**2 for module in chosen))
    assert part.relative_frobenius == pytest.approx(part.frobenius / base)
    assert part.relative_spectral == max(module.spectral / module.base_spectral for module in chosen)
    assert set(found.by_layer) == {(0, "attention"), (0, "ffn"), (1, "attention"), (1, "ffn")}
    assert set(found.by_role) == {"attention", "ffn"}
    assert found.total.parameters == sum(role.parameters for role in found.by_role.values())
    assert not analyze_update(str(pico.adapter("llama"))).is_relative


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation makes outside the meta device."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_a_lora_is_streamed_and_its_product_never_made(pico, monkeypatch):
    adapter = pico.adapter("llama", LoraConfig(r=1, target_modules=["up_proj"], task_type="CAUSAL_LM"), "one")
    held, most = [], []
    read = StoredTensor.read

    def watched(stored):
        held[:] = [reference for reference in held if reference() is not None]
        tensor = read(stored)
        held.append(weakref.ref(tensor))
        most.append(len(held))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", watched)
    with Largest() as largest:
        analyze_update(str(adapter))
    assert largest.bytes == 24 * 8  # up_proj is (24, 16): its longer factor in float64; the product has 384 elements
    assert max(most) <= 4  # a pair, and the one before it while its names are bound anew


@pytest.mark.slow
def test_an_adapter_for_seven_billion_parameters_takes_seconds_and_little_memory(tmp_path, clean_process):
    folder = Path(__file__).parents[1] / "benchmarks"
    code = f"""
import json, sys
sys.path.insert(0, {str(folder)!r})
import bench_analysis as bench, torch
torch.set_num_threads(1)
adapter = bench.make(bench.Path({str(tmp_path)!r}), 16, 32, torch.bfloat16, False)
print(json.dumps(bench.measure(str(adapter), False)))
"""
    result = clean_process(code)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["modules"] == 224
    assert found["parameters"] == 39_976_960
    assert found["seconds"] < 60  # about one where nothing else runs
    assert found["peak_mib"] < 2048


# --- Spectra -------------------------------------------------------------------------------------------------------
def test_spectra_by_hand():
    values = torch.tensor([3.0, 1.0])
    found = spectrum_of_product(torch.diag(values), torch.eye(2), scale=-2.0)
    assert found.frobenius == pytest.approx(2 * math.sqrt(10))
    assert found.spectral == pytest.approx(6)
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert spectrum_of_product(torch.zeros(5, 2), torch.ones(2, 3)) == spectrum_of_matrix(torch.zeros(2, 3))
    assert spectrum_of_matrix(torch.zeros(2, 3)).effective_rank == 0


def test_experts_count_as_one_update_of_several_matrices():
    left, right = torch.randn(3, 6, 2), torch.randn(3, 2, 5)
    found, whole = spectrum_of_product(left, right), left @ right
    assert found.frobenius == pytest.approx(whole.norm().item(), rel=1e-5)
    assert found.spectral == pytest.approx(max(torch.linalg.matrix_norm(one, 2).item() for one in whole), rel=1e-5)
    each = [spectrum_of_product(one, other) for one, other in zip(left, right, strict=True)]
    assert found.effective_rank == pytest.approx(sum(one.effective_rank for one in each) / 3)


@pytest.mark.parametrize("shape", [(40, 30), (700, 600), (600, 700)])
def test_norms_of_a_weight(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    frobenius, spectral = norms(weight)
    assert frobenius == pytest.approx(weight.norm().item(), rel=1e-5)
    assert spectral == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-4)
    assert norms(torch.zeros(shape)) == (0, 0)


def hidden_state_similarity(*args, **options):
    return measure_states(*args, **options)[0]


def residual_rank(*args, **options):
    return measure_states(*args, **options)[1]


# --- The base's weights --------------------------------------------------------------------------------------------
def test_a_sharded_base_is_read(pico, tmp_path):
    pico.plain("llama").save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert (tmp_path / "base" / "model.safetensors.index.json").is_file()
    adapter = str(pico.adapter("llama"))
    assert analyze_update(adapter, base=str(tmp_path / "base"), relative=True) == analyze_update(adapter, relative=True)


def test_a_taia_repository_on_the_hub_equals_its_adapter(online):
    found = analyze_update(online.taia, relative=True)
    assert found == analyze_update(online.adapter, relative=True)
    assert found.total.relative_frobenius > 0


def test_without_relative_no_weight_of_the_base_is_fetched(online, repo_id):
    base, adapter = f"{repo_id}-base", f"{repo_id}-adapter"
    online.push_base(base)
    online.push_adapter(adapter, base)
    online.hub.requests.clear()
    shutil.rmtree(cached(base))
    analyze_update(adapter)
    assert not [path for _, path in online.hub.requests if base in path and "safetensors" in path]
    analyze_update(adapter, relative=True)
    assert [path for _, path in online.hub.requests if base in path and path.endswith("model.safetensors")]


def test_a_weight_that_the_base_lacks_is_named_before_anything_is_downloaded(online, repo_id, pico, tmp_path):
    adapter = f"{repo_id}-adapter"
    online.push_adapter(adapter, "org/base")
    folder = shutil.copytree(pico.base("llama"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=folder)
    online.hub.requests.clear()
    for base in (repo_id, str(folder)):
        with pytest.raises(UpdateMismatchError, match=r"lacks 1 .* 'model\.layers\.1\.mlp\.up_proj\.weight'"):
            analyze_update(adapter, base=base, relative=True)
    assert not (cached(repo_id) / "blobs").is_dir() or all(
        path.stat().st_size < 10_000 for path in (cached(repo_id) / "blobs").iterdir()
    )


def test_a_quantised_base_is_refused_for_relative_norms(pico, tmp_path):
    folder = shutil.copytree(pico.base("llama"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RepositoryError, match="quantised"):
        analyze_update(str(pico.adapter("llama")), base=str(folder), relative=True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("missing", "has no model.safetensors"), ("cut", "no safetensors file"), ("shard", "has no 'model-00001-of-")],
)
def test_a_damaged_base_is_named(pico, tmp_path, damage, words):
    folder = tmp_path / "base"
    pico.plain("llama").save_pretrained(folder, max_shard_size="4KB" if damage == "shard" else "1GB")
    if damage == "shard":
        for path in folder.glob("*.safetensors"):
            path.unlink()
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(RepositoryError, match=words):
        analyze_update(str(pico.adapter("llama")), base=str(folder), relative=True)


def cached(repo_id):
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


# --- Bad adapters --------------------------------------------------------------------------------------------------
def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match=r"neither a config\.json nor an adapter_config\.json"):
        analyze_update(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="no TAIA repository"):
        analyze_update(str(tmp_path))


def test_a_corrupt_file_is_named(pico, tmp_path):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(RepositoryError, match="truncated or no safetensors"):
        analyze_update(str(adapter))


def test_a_flipped_bit_in_a_taia_repository_is_found(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "repo")
    assert analyze_update(str(tmp_path / "repo")) == analyze_update(str(pico.adapter("llama")))
    file = tmp_path / "repo" / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RepositoryError, match="damaged"):
        analyze_update(str(tmp_path / "repo"))


@pytest.mark.parametrize("method", ["IA3", "OFT", "LN_TUNING", "MISS", "HIRA"])
def test_a_method_that_adds_no_matrix_is_refused_by_name(pico, method):
    options = {
        "IA3": {"feedforward_modules": ["down_proj"]},
        "OFT": {"oft_block_size": 4, "r": 0},
        "LN_TUNING": {"target_modules": ["norm"]},
    }.get(method, {"r": 4})
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[getattr(peft.PeftType, method)]
    config = kind(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM", **options})
    with pytest.raises(UnsupportedUpdateError, match=f"{method} adapter has no norm"):
        analyze_update(str(pico.adapter("llama", config, f"analysis-{method}")))


def test_values_that_are_no_numbers_are_refused(pico, tmp_path):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(RepositoryError, match=r"'model\.layers\.1\.mlp\.up_proj' holds values that are no numbers"):
        analyze_update(str(adapter))


@pytest.mark.parametrize("base", ["qwen3", "gpt2"])
def test_an_adapter_of_another_base_is_refused(pico, base, tmp_path):
    if base == "qwen3":  # the same names in other shapes
        config = json.loads((pico.base("llama") / "config.json").read_text())
        folder = tmp_path / "base"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    else:
        folder = pico.base(base)
    with pytest.raises(UpdateMismatchError):
        analyze_update(str(pico.adapter("llama")), base=str(folder))


def test_an_adapter_without_a_base_asks_for_one(pico, tmp_path):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="names no base model"):
        analyze_update(str(adapter))
    assert analyze_update(str(adapter), base=str(pico.base("llama"))).modules


# --- Hidden states -------------------------------------------------------------------------------------------------
def test_similarity_and_residual_by_hand():
    one = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.1, 0.7]])
    other = torch.tensor([[4.0, 3.0], [-2.0, 0.0], [1.0, 0.0], [0.1, 0.7]])
    assert cosine_similarity(one, other).tolist() == [pytest.approx(0.96), -1, 0, 1]
    # X has the column sums 5 and 4 and the row sums 3 and 6; its median row is (2.5, 2), so that every entry of res(X)
    # is 1.5 or 0: column sums 3 and 0, row sums 1.5
    states = torch.tensor([[1.0, 2.0], [4.0, 2.0]])
    assert relative_residual(states).item() == pytest.approx(math.sqrt(3 * 1.5) / math.sqrt(5 * 6))
    sink = torch.tensor([[0.0], [1.0], [9.0]])  # median 1, which leaves -1, 0 and 8; the mean would leave more
    assert relative_residual(sink).item() == pytest.approx(math.sqrt(9 * 8) / math.sqrt(10 * 9))
    assert relative_residual(torch.ones(3, 2)).item() == 0
    assert relative_residual(torch.zeros(3, 2)).item() == 0
    assert relative_residual(torch.stack([states, states * 7])).tolist() == pytest.approx([0.3872983] * 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_states_that_are_no_numbers_are_refused(value):
    bad, good = torch.tensor([[1.0, value], [1.0, 2.0]]), torch.ones(2, 2)
    for measure in (lambda: cosine_similarity(bad, good), lambda: cosine_similarity(good, bad)):
        with pytest.raises(ConfigError, match="no numbers"):
            measure()
    with pytest.raises(ConfigError, match="no numbers"):
        relative_residual(bad)


def test_layers_on_several_devices_are_put_together_on_the_processor(pico, tokenizer, monkeypatch):
    class OnAnotherDevice:
        def __init__(self, values):
            self.values = values

        def cpu(self):
            return self.values

    for measure in (cosine_similarity, relative_residual):
        monkeypatch.setattr(
            hidden_module, measure.__name__, lambda *states, measure=measure: OnAnotherDevice(measure(*states))
        )
    assert examine_texts(pico.taia("llama"), tokenizer, TEXTS, ["all"]).tokens


def test_curves_and_densities_are_those_of_the_values(pico, tokenizer):
    model = pico.taia("llama")
    found = examine_texts(model, tokenizer, TEXTS)
    values, ranks = hidden_state_similarity(model, tokenizer, TEXTS), residual_rank(model, tokenizer, TEXTS)
    grid = np.array(found.grid)
    for label in found.similarity:
        for curve, of in ((found.similarity[label], values[label]), (found.residual_rank[label], ranks[label])):
            spread = np.sqrt(((of - of.mean(1, keepdims=True)) ** 2).sum(1) / (of.shape[1] - 1))
            assert curve.mean == pytest.approx(of.mean(1), rel=1e-5)
            assert curve.standard_error == pytest.approx(spread / math.sqrt(of.shape[1]), rel=1e-5, abs=1e-12)
        assert found.last_density[label] == pytest.approx(density(values[label][-1], grid), rel=1e-4, abs=1e-9)
        without_embeddings = density(values[label][1:].ravel(), grid)
        assert found.pooled_density[label] == pytest.approx(without_embeddings, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mixtral", "jamba", "qwen3_next", "xlnet"])
def test_hidden_states_of_any_architecture(pico, tokenizer, name):
    model = pico.taia(name)
    found = hidden_state_similarity(model, tokenizer, TEXTS)
    ranks = residual_rank(model, tokenizer, TEXTS)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert list(found) == list(ranks) == MODES_OF_EXAMINATION
    assert all(values.shape == (3, tokens) for values in found.values())
    assert all(values.shape == (3, 3) for values in ranks.values())
    assert (found["none"] == 1).all()
    assert found["all"][-1].max() < 1
    assert (found["all"][0] == 1).all()  # the embeddings are not adapted
    assert all(((values >= 0) & (values <= 1.1)).all() for values in ranks.values())


MODES_OF_EXAMINATION = ["attention", "ffn", "all", "none"]


def test_similarity_is_that_of_the_loaded_models(pico, tokenizer):
    model, base = pico.taia("llama"), pico.plain("llama")
    reference = pico.peft("llama", pico.adapter("llama"))
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        ours, theirs = (one(input_ids=ids, output_hidden_states=True).hidden_states for one in (reference, base))
    expected = [torch.cosine_similarity(one, other, dim=-1)[0].numpy() for one, other in zip(ours, theirs, strict=True)]
    found = hidden_state_similarity(model, tokenizer, TEXTS[:1], ["all"])["all"]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)
    ranks = residual_rank(model, tokenizer, TEXTS[:1], ["all"])["all"]
    for layer, state in enumerate(ours):
        rest = state[0].double() - state[0].double().quantile(0.5, dim=0)
        expected = [
            torch.linalg.matrix_norm(one, 1) * torch.linalg.matrix_norm(one, torch.inf) for one in (rest, state[0])
        ]
        assert ranks[layer, 0] == pytest.approx(math.sqrt(expected[0] / expected[1]), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(pico, tokenizer, side):
    model = pico.taia("gpt2")  # absolute positions: padding on the left would move them
    alone = [hidden_state_similarity(model, tokenizer, [text])["all"] for text in TEXTS]
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        together = hidden_state_similarity(model, tokenizer, TEXTS, batch_size=3)["all"]
    finally:
        tokenizer.padding_side = before
    np.testing.assert_allclose(together, np.concatenate(alone, 1), atol=1e-6)
    ranks = residual_rank(model, tokenizer, TEXTS, ["all"], batch_size=2)["all"]
    each = [residual_rank(model, tokenizer, [text], ["all"])["all"] for text in TEXTS]
    np.testing.assert_allclose(ranks, np.concatenate(each, 1), atol=1e-6)


def test_examination_leaves_the_model_as_it_was(pico, tokenizer):
    model = pico.taia("llama", inference_modules="ffn")
    model.train()
    steps = []
    found = examine_texts(
        model, tokenizer, TEXTS, [{"attention": 1, "ffn": 0.5}, "all"], batch_size=2, max_tokens=5,
        progress=lambda stage, done, total: steps.append((done, total)),
    )  # fmt: skip
    assert model.training
    assert model.inference_modules == "ffn"
    assert steps[0] == (0, 6)
    assert steps[-1] == (6, 6)
    assert found.tokens == 5 + 2 + 5
    assert list(found.similarity) == list(found.residual_rank) == list(found.last_density)
    assert "none" not in found.similarity
    step = found.grid[1] - found.grid[0]
    for values in (*found.last_density.values(), *found.pooled_density.values()):
        assert 0.5 < sum(values) * step <= 1.1


def test_bad_texts_and_modes_are_refused_before_a_forward_pass(pico, tokenizer, monkeypatch):
    model = pico.taia("llama")
    monkeypatch.setattr(type(model), "forward", None)
    for texts, words in (([], "no texts"), (["a", " "], "Text 2 of 2 is empty"), ("a", "One string")):
        with pytest.raises(ConfigError, match=words):
            hidden_state_similarity(model, tokenizer, texts)
    with pytest.raises(ConfigError, match="no mode"):
        residual_rank(model, tokenizer, ["a"], [])
    with pytest.raises(SettingError, match="atention"):
        residual_rank(model, tokenizer, ["a"], ["all", "atention"])
    with pytest.raises(ConfigError, match="has no modes"):
        residual_rank(pico.plain("llama"), tokenizer, ["a"])


def test_density_is_one_in_all_and_keeps_its_mass_inside():
    grid = np.linspace(-1, 1, 4001)
    generator = np.random.default_rng(0)
    for values in (1 - generator.beta(2, 40, 9000), generator.uniform(-1, 1, 300), np.ones(5), np.array([0.25])):
        estimate = density(values, grid)
        assert np.trapezoid(estimate, grid) == pytest.approx(1, abs=5e-3)
    few = np.array([0.1, 0.2, 0.5])
    width = 0.9 * min(few.std(), 0.2 / 1.34) * 3**-0.2
    kernel = [math.exp(-0.5 * ((0.3 - value) / width) ** 2) / (width * math.sqrt(2 * math.pi)) for value in few]
    assert density(few, np.array([0.3]))[0] == pytest.approx(sum(kernel) / 3, rel=1e-6)
    with pytest.raises(ValueError, match="no values"):
        density(np.array([]), grid)


# --- The file and the command --------------------------------------------------------------------------------------
@pytest.fixture
def repository(pico, tokenizer, tmp_path):
    folder = tmp_path / "repo"
    pico.taia("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_file_says_what_was_examined(repository, pico, tmp_path):
    made = examine(str(repository), relative=True, texts=TEXTS, modes=["none", "all"])
    weights = repository / "adapter" / "adapter_model.safetensors"
    assert made.subject.adapter_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert made.subject.base_model == str(pico.base("llama").resolve())
    assert made.versions["torch"] == torch.__version__
    made.save(repository)
    assert load_analysis(repository) == load_analysis(repository / "taia_analysis.json") == made
    text = (repository / "taia_analysis.json").read_text()
    assert json.loads(text)["format"] == 1
    assert not [path for path in repository.iterdir() if path.name.startswith(".")]


def test_the_base_revision_is_recorded(online):
    made = examine(online.taia)
    assert made.subject.base_revision == online.base_sha
    assert made.subject.revision == online.api.model_info(online.taia).sha


def test_a_later_analysis_keeps_what_it_did_not_measure(repository):
    whole = examine(str(repository), relative=True, texts=TEXTS)
    quick = examine(str(repository))
    kept = quick.with_kept(whole)
    assert kept.hidden == whole.hidden
    assert kept.update == whole.update
    subject = Subject("other", None, whole.subject.base_model, None, "ab12")
    assert quick.with_kept(Analysis(subject, whole.update, whole.hidden)) == quick


def test_versions_go_with_what_they_measured(repository):
    whole = examine(str(repository), relative=True, texts=TEXTS)
    old = dataclasses.replace(whole, versions={"torch": "1"}, hidden_versions={"torch": "2"})
    quick = examine(str(repository))
    kept = quick.with_kept(old)
    assert (kept.versions, kept.hidden_versions) == ({"torch": "1"}, {"torch": "2"})
    assert Analysis.from_json(json.loads(json.dumps(kept.to_json()))).hidden_versions == {"torch": "2"}
    again = whole.with_kept(old)
    assert (again.update, again.versions, again.hidden_versions) == (whole.update, whole.versions, whole.versions)
    plain = dataclasses.replace(quick, versions={"torch": "1"})
    assert whole.with_kept(plain) == whole


def test_the_same_update_on_another_local_base_is_another_model():
    one = Subject("x", None, "/models/one", None, "ab")
    assert one.is_same_model(dataclasses.replace(one, name="y"))
    assert not one.is_same_model(dataclasses.replace(one, base_model="/models/other"))
    assert not one.is_same_model(dataclasses.replace(one, adapter_sha256="cd"))
    on_hub = dataclasses.replace(one, base_revision="1" * 40)
    assert on_hub.is_same_model(dataclasses.replace(on_hub, base_model="org/moved"))


def test_results_of_another_adapter_are_not_drawn(repository):
    subject = examine(str(repository)).subject
    model = ModelIdentity("x", None, subject.base_model, None, subject.adapter_sha256, "float32")
    Results(model).save(repository / "taia_results.json")
    assert matching_results(str(repository), None, subject, None) == Results(model)
    Results(dataclasses.replace(model, adapter_sha256="1" * 64)).save(repository / "taia_results.json")
    assert matching_results(str(repository), None, subject, None) is None


def test_a_named_base_is_loaded_at_the_commit_that_was_measured(online, monkeypatch):
    from taia_hub.analysis import examining

    asked = {}

    def remember(base, adapter, **options):
        asked.update(options, base=base)
        raise SettingError("far enough")

    monkeypatch.setattr(examining.TAIAForCausalLM, "from_adapter", remember)
    with pytest.raises(SettingError, match="far enough"):
        examine(online.adapter, base=online.base, texts=TEXTS)
    assert (asked["base"], asked["base_revision"]) == (online.base, online.base_sha)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "format is None"),
        ('{"format": 9}', "format is 9"),
        ('{"format": 1, "subject": {}}', "is damaged"),
        ('{"format": 1, "subject": {}, "update": {"method": 1}}', "is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, words):
    (tmp_path / "taia_analysis.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_analysis(tmp_path)


def test_a_missing_file_says_how_it_is_made(tmp_path):
    with pytest.raises(RepositoryError, match="cannot be read") as caught:
        load_analysis(tmp_path / "taia_analysis.json")
    assert "taia analyze" in caught.value.hint


def test_texts_are_read_from_lines_and_jsonl(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"question": "two", "answer": "x"}\n')
    assert read_texts(tmp_path / "a.txt") == read_texts(tmp_path / "a.jsonl") == ["one", "two"]
    for content, words in (('{"text": "a"}\n{', r"b\.jsonl:2: no JSON"), ('{"answer": "x"}', r"b\.jsonl:1: no text")):
        (tmp_path / "b.jsonl").write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_texts(tmp_path / "b.jsonl")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="is empty"):
        read_texts(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_texts(tmp_path / "latin.txt")
    with pytest.raises(RepositoryError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")


@pytest.fixture
def run():
    """Runs the command; returns what it printed, or raises what it raised."""
    import typer

    from taia_hub.cli.analysis import analyze

    app = typer.Typer()
    app.command()(analyze)

    def call(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_the_command_prints_tables_and_writes_file_and_figures(repository, tmp_path, run):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    out = run(
        repository, "--relative", "--texts", tmp_path / "texts.txt", "--mode", "none", "--mode", '{"ffn": 0.5}',
        "--figures", tmp_path / "figures", "--out", repository,
    )  # fmt: skip
    made = load_analysis(repository)
    assert made.update.is_relative
    assert list(made.hidden.similarity) == ["none", "ffn=0.5"]
    part = made.update.by_layer[1, "ffn"]
    (row,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["1", "ffn"]]
    assert row[2:5] == ["3", f"{part.parameters:,}", f"{part.frobenius:.4g}"]
    assert row[-2] == f"{part.relative_frobenius:.4g}"
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("update_norms", "similarity", "residual_rank") for kind in ("png", "svg")
    }
    shown = json.loads(run(repository, "--json", "--out", repository))
    assert {key: value for key, value in shown.items() if key != "figures"} == json.loads(
        (repository / "taia_analysis.json").read_text()
    )
    assert load_analysis(repository) == made  # a quick look does not lose what took long


def test_the_command_examines_a_repository_on_the_hub(online, run, tmp_path):
    (tmp_path / "texts.txt").write_text("the cat\n")
    out = run(online.taia, "--texts", tmp_path / "texts.txt")
    assert f"LORA of {online.taia} on {online.base} @ {online.base_sha[:8]}" in out
    assert "Residual rank" in out


def test_the_command_takes_a_plain_adapter_on_a_base_that_moved(pico, tokenizer, run, tmp_path):
    base = shutil.copytree(pico.base("llama"), tmp_path / "moved")
    tokenizer.save_pretrained(base)
    (tmp_path / "texts.txt").write_text("the cat\n")
    out = run(pico.adapter("llama"), "--base", base, "--texts", tmp_path / "texts.txt", "--mode", "all")
    assert str(base) in out
    assert "Cosine similarity" in out


def test_the_command_refuses_before_it_works(repository, run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--mode needs texts"):
        run(repository, "--mode", "all")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        run(repository, "--texts", tmp_path / "empty.txt")
    with pytest.raises(TAIAError, match="no folder here"):
        run("./nowhere")
    (tmp_path / "old.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        run(repository, "--out", tmp_path / "old.json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="--figures needs the module 'matplotlib'"):
        run(repository, "--figures", tmp_path)
