"""Updates on the structure of their base, without its weights."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from taia_hub import TAIAForCausalLM, hub
from taia_hub.errors import ConfigError, RepositoryError, TAIAError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.merging.module import holding, merged_weights
from taia_hub.repository.card_request import CardRequest
from taia_hub.repository.card_updating import make_card
from taia_hub.repository.creating import create_repository
from taia_hub.repository.info import repository_info
from taia_hub.repository.opening import base_checkpoint, open_update
from taia_hub.repository.update_files import open_repository
from taia_hub.updates.dense.difference import write_dense
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, save_molora
from taia_hub.updates.peft.plain_lora import LeanLora
from tests.conftest import renew_manifest

ACCESS = hub.HubAccess()


def opened(folder, **keywords):
    return open_update(folder, access=ACCESS, **keywords)


def is_weightless(model):
    return all(one.is_meta for one in model.parameters())


def test_a_lora_stays_in_its_file(pico):
    update = opened(pico.adapter("llama"))
    assert update.streamed
    assert is_weightless(update.model)
    assert update.kind.name == "peft"
    assert update.base.folder == pico.base("llama")
    assert update.folder == pico.adapter("llama")
    acting = {site.path: weight for (_, site, _), weight in update.weights({"attention": 1, "ffn": 0.5})}
    assert len(acting) == 14
    assert {weight for path, weight in acting.items() if "self_attn" in path} == {1.0}
    assert {weight for path, weight in acting.items() if "mlp" in path} == {0.5}


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2, r"layers.1.mlp.*": 3}}),
        ("llama", {"alpha_pattern": {"up_proj": 5}}),
        ("llama", {"target_modules": r".*\.(q_proj|down_proj)"}),
        ("llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
        ("llama", {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["1.mlp.up_proj"]}),
        ("llama", {"target_modules": ["lm_head", "o_proj"]}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("qwen3_moe", {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_a_plain_lora_is_read_without_pefts_layers_as_with_them(pico, family, config):
    folder = pico.adapter(family, pico.lora(family, **config), label=_label("lean", config))
    lean, full = opened(folder, lean=True), opened(folder)
    assert isinstance(lean.update, LeanLora)
    assert not any(isinstance(one, BaseTunerLayer) for one in lean.model.modules())
    assert is_weightless(lean.model)
    rows = [(site.path, site.role, site.layer, site.parameters, site.whole_only) for site in full.switch.sites]
    assert [(one.path, one.role, one.layer, one.parameters, one.whole_only) for one in lean.switch.sites] == rows
    assert [dict(layer.scaling) for _, _, layer in lean.layers] == [layer.scaling for _, _, layer in full.layers]
    assert [layer.get_base_layer().weight.shape for _, _, layer in lean.layers] == [
        layer.get_base_layer().weight.shape for _, _, layer in full.layers
    ]
    assert lean.update.method == full.update.method


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": "all-linear"},
    ],
)
def test_what_is_more_than_a_plain_lora_gets_pefts_layers(pico, config):
    folder = pico.adapter(
        "llama", pico.lora("llama", **config), label=f"not-lean-{next(iter(config))}-{len(str(config))}"
    )
    if config.get("target_modules") == "all-linear":  # PEFT saves what it found; somebody may write it by hand
        folder = _with(folder, target_modules="all-linear")
    update = opened(folder, lean=True)
    assert not isinstance(update.update, LeanLora)
    assert any(isinstance(one, BaseTunerLayer) for one in update.model.modules())


@pytest.mark.parametrize(
    "values",
    [
        {"r": 0},
        {"r": "4"},
        {"r": 4.0},
        {"lora_alpha": None},
        {"alpha_pattern": {"q_proj": "x"}},
        {"alpha_pattern": None},
        {"rank_pattern": []},
        {"rank_pattern": {"(": 4}},
        {"lora_dropout": 2.0},
        {"target_modules": "(q_proj"},
        {"exclude_modules": "(q_proj"},
    ],
    ids=str,
)
def test_odd_values_are_judged_by_peft_alone(pico, tmp_path, values):
    """Both ways give the same error of ours, or none."""
    folder = tmp_path / "adapter"
    shutil.copytree(pico.adapter("llama"), folder)
    _with(folder, **values)

    def outcome(lean):
        try:
            return sorted(site.path for site in opened(folder, lean=lean).switch.sites)
        except TAIAError as error:
            return type(error), str(error)

    assert outcome(lean=True) == outcome(lean=False)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "targets"])
def test_a_lora_that_does_not_fit_is_refused_without_pefts_layers_too(pico, tmp_path, change):
    folder = tmp_path / "adapter"
    shutil.copytree(pico.adapter("llama"), folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors[name.replace("q_proj", "x_proj")] = tensors[name].clone()
    elif change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        _with(folder, target_modules=["q_proj"])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UpdateMismatchError):
        opened(folder, lean=True)


def _label(name, config):
    return f"{name}-{sha256(repr(config).encode()).hexdigest()[:8]}"


def _with(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_a_layer_holds_its_tensors_for_a_block_only(pico):
    update = opened(pico.adapter("llama"))
    tensors = load_file(pico.adapter("llama") / "adapter_model.safetensors")
    name, _, layer = update.layers[0]
    expected = tensors[f"base_model.model.{name}.lora_A.weight"]
    with holding(update, update.layers[0]) as held:
        assert held is layer
        assert torch.equal(layer.lora_A["default"].weight, expected)
        assert all(one.is_meta for _, _, other in update.layers[1:] for one in other.parameters())
    assert is_weightless(update.model)


def test_16_bit_tensors_become_float32(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: one.bfloat16() for name, one in load_file(path).items()}, path)
    update = opened(tmp_path / "adapter")
    with holding(update, update.layers[0]) as layer:
        assert layer.lora_A["default"].weight.dtype == torch.float32


def test_merging_leaves_no_trace(pico):
    update = opened(pico.adapter("llama", pico.lora("llama", use_dora=True), label="merge-use_dora"))
    checkpoint = base_checkpoint(update, ACCESS)
    entry = update.layers[3]
    weight = checkpoint.groups[f"{entry[0]}.weight"].sources[0][0].read()
    before = weight.clone()
    scaling = dict(entry[2].scaling)
    made = merged_weights(update, entry, {"weight": weight}, 1.0)
    assert torch.equal(weight, before)
    assert torch.equal(made["weight"], merged_weights(update, entry, {"weight": weight}, 1.0)["weight"])
    assert not torch.equal(made["weight"], before)
    half = merged_weights(update, entry, {"weight": weight}, 0.5)
    assert not torch.equal(half["weight"], made["weight"])
    assert is_weightless(update.model)
    assert not entry[2].merged_adapters
    assert entry[2].scaling == scaling
    reference = pico.peft("llama", pico.adapter("llama", label="merge-use_dora")).merge_and_unload()
    assert torch.equal(made["weight"], reference.state_dict()[f"{entry[0]}.weight"])


def test_what_peft_converts_goes_through_the_strict_load(pico):
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", modules_to_save=["norm"])
    update = opened(pico.adapter("llama", config, label="saved"))
    assert {site.role for _, site, _ in update.layers} == {"attention", "other"}
    loha = opened(pico.adapter("llama", _loha(), label="opened-loha"))
    assert not loha.streamed
    assert not any(
        one.is_meta for _, _, layer in loha.layers for name, one in layer.named_parameters() if "hada" in name
    )


@pytest.mark.parametrize("kind", ["molora", "dense"])
def test_the_other_kinds(pico, tmp_path, kind):
    if kind == "molora":
        save_molora(add_molora(pico.plain("llama"), MoLoraSettings(rank=4)), tmp_path / "update")
    else:
        model = pico.plain("llama")
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.add_(1)
        model.save_pretrained(tmp_path / "tuned")
        write_dense(pico.base("llama"), tmp_path / "tuned", tmp_path / "update")
        with pytest.raises(ConfigError, match="names no base model"):
            opened(tmp_path / "update")
    found = open_repository(tmp_path / "update", ACCESS, base=str(pico.base("llama")) if kind == "dense" else None)
    update = opened(found.with_weights(ACCESS))
    assert update.kind.name == kind
    assert is_weightless(update.model)
    paths = [site.path for _, site, _ in update.layers]
    assert len(paths) == (14 if kind == "molora" else 1)
    if kind == "dense":
        base = torch.zeros(16, 16)
        made = merged_weights(update, update.layers[0], {"weight": base}, 0.25)
        tuned = load_file(tmp_path / "tuned" / "model.safetensors")[f"{paths[0]}.weight"]
        assert torch.equal(made["weight"], torch.lerp(base, tuned, 0.25))


def test_a_repository_on_the_hub(online):
    update = opened(online.taia)
    assert update.base.name == online.base
    assert update.base.revision == online.base_sha
    assert update.config.model_type == "taia"
    assert is_weightless(update.model)
    wanted = [path for _, path in online.hub.requests if f"{online.base}/resolve" in path and "safetensors" in path]
    assert not wanted  # the base's weights are fetched by `base_checkpoint` alone
    assert len(base_checkpoint(update, ACCESS).groups) > 14


def test_a_scaling_that_no_file_can_say_is_refused(pico, tmp_path):
    model = pico.taia("llama")
    layer = model.model.layers[1].mlp.up_proj
    layer.scaling["default"] = 0.37
    for write in (model.export_adapter, model.merge):
        with pytest.raises(UnsupportedUpdateError, match=r"'model\.layers\.1\.mlp\.up_proj' was changed to 0\.37"):
            write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_into_the_bases_folder(pico, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(pico.base("llama"), base)
    with pytest.raises(RepositoryError, match="lies inside"):
        open_repository(pico.adapter("llama"), ACCESS, base=str(base)).check_outside(base / "sub")


def test_another_base_is_said(pico, caplog):
    open_repository(pico.adapter("llama"), ACCESS, base=str(pico.base("qwen3")))
    assert f"is put on '{pico.base('qwen3')}'" in caplog.text


def test_what_cannot_be_opened(pico, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match="holds neither"):
        opened(tmp_path / "empty")
    with pytest.raises(ConfigError, match="is no TAIA repository"):
        opened(pico.base("llama"))
    create_repository(str(pico.base("llama")), str(pico.adapter("llama")), out=tmp_path / "taia")
    path = tmp_path / "taia" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RepositoryError, match="is damaged"):
        opened(tmp_path / "taia")
    config = json.loads((tmp_path / "taia" / "config.json").read_text())
    (tmp_path / "taia" / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="names no base model"):
        opened(tmp_path / "taia")


def test_a_kind_is_known_before_its_weights_are_fetched(online, tmp_path):
    access = hub.HubAccess(cache_dir=tmp_path)
    found = open_repository(online.taia, access)
    assert (found.kind.name, found.is_plain) == ("peft", False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert list(found.with_weights(access).folder.glob("*.safetensors"))


def test_an_adapter_that_vanishes(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    update = opened(tmp_path / "adapter")
    assert update.keys
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RepositoryError, match="is missing, truncated or no safetensors file"):
        merged_weights(update, update.layers[0], {"weight": torch.zeros(16, 16)}, 1.0)
    assert isinstance(update.layers[0][2], BaseTunerLayer)


def _loha():
    from peft import LoHaConfig

    return LoHaConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")


def test_a_repository_is_opened_and_a_space_planned_without_torch(pico, tmp_path, clean_process):
    pico.taia("llama").save_pretrained(tmp_path / "taia")
    done = clean_process(
        "import sys; import taia_hub.space.making, taia_hub.repository.card_updating; from taia_hub import hub\n"
        "from taia_hub.repository.update_files import open_repository\n"
        "found = open_repository('taia', hub.HubAccess()).with_weights(hub.HubAccess())\n"
        "print(found.config.setting.label, found.kind.name, found.method)\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    assert done.stdout.splitlines() == ["attention peft LORA", "[]"], done.stderr


def test_the_recorded_commit_of_a_base_holds_where_it_is_named_again(online, monkeypatch):
    asked = []
    resolve = hub.resolve_base
    monkeypatch.setattr(hub, "resolve_base", lambda *words: asked.append(words[:2]) or resolve(*words))
    open_repository(online.taia, ACCESS, base=online.base)
    assert asked == [(online.base, online.base_sha)]


def test_the_commit_of_another_base_is_not_taken_for_this_one(online, pico, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(pico.adapter("llama"), folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for revision, found in (("b" * 40, online.base_sha), (online.base_sha, online.base_sha)):
        settings.update(base_model_name_or_path="org/gone", revision=revision)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        assert open_repository(folder, ACCESS, base=online.base).base.revision == found


@pytest.mark.parametrize("name", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"])
def test_a_missing_file_on_the_hub_is_told(online, repo_id, name):
    source = Path(online.api.snapshot_download(online.taia))
    online.api.create_repo(repo_id, exist_ok=True)
    online.api.upload_folder(repo_id=repo_id, folder_path=source, ignore_patterns=[name])
    with pytest.raises(RepositoryError, match=name.rpartition("/")[2]):
        make_card(repo_id, CardRequest())
    with pytest.raises(RepositoryError, match=name.rpartition("/")[2]):
        repository_info(repo_id)


@pytest.mark.parametrize("kind", ["plain adapter", "repository"])
@pytest.mark.parametrize("named", ["here", "/nowhere/at/all", "../up"], ids=["here", "nowhere", "above"])
def test_what_is_on_the_hub_names_no_folder_of_this_machine(online, pico, repo_id, tmp_path, kind, named):
    base = pico.base("llama")
    folder = shutil.copytree(pico.adapter("llama"), tmp_path / "own")
    if kind == "repository":
        folder = create_repository(str(base), str(folder), out=tmp_path / "taia").folder
    where = str(base) if named == "here" else named
    for path in [*folder.glob("config.json"), *folder.rglob("adapter_config.json")]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": where}))
    renew_manifest(folder)
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns="README.md")
    with pytest.raises(RepositoryError, match="can only be a folder of its author's") as caught:
        TAIAForCausalLM.from_pretrained(repo_id)
    assert "from_adapter" in caught.value.hint
    if kind == "plain adapter":
        assert TAIAForCausalLM.from_adapter(base, repo_id)
