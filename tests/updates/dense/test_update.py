"""Full fine-tunes: every setting's logits, threads, rows, copies, and what is refused."""

import copy
import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import (
    ConfigError,
    RepositoryError,
    SettingError,
    UnsupportedUpdateError,
    UpdateMismatchError,
)
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.dense import layers as dense_layers
from taia_hub.updates.dense.difference import write_dense
from taia_hub.updates.dense.layers import TunedFiles
from taia_hub.updates.dense.update import DEFAULT_SETTING, attach_dense
from taia_hub.updates.options import AttachOptions

NAMES = ("llama", "qwen3", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe", "qwen2_moe")
MODES = {"none": (), "attention": ("attention",), "ffn": ("ffn",), "all": ("attention", "ffn", "other")}


class Dense:
    """Bases, fine-tunes whose every parameter was changed, and both attached."""

    def __init__(self, pico, folder):
        self.pico, self.folder = pico, folder

    def tuned(self, name) -> Path:
        folder = self.folder / f"{name}-tuned"
        if not folder.exists():
            model = self.pico.plain(name)
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder)
        return folder

    def update(self, name) -> Path:
        folder = self.folder / f"{name}-dense"
        if not folder.exists():
            write_dense(self.pico.base(name), self.tuned(name), folder, shard_bytes=8000)
        return folder

    def attach(self, name, folder=None, model=None, **keywords):
        model = self.pico.plain(name) if model is None else model
        placed = find_sublayers(model)
        how = AttachOptions(placed.roles, placed.unplaced, **{"inference_modules": DEFAULT_SETTING, **keywords})
        update, switch = attach_dense(model, folder or self.update(name), how)
        return model, update, switch

    def reference(self, name, roles, weight=1.0, tuned=None, base=None):
        """The base model with the tuned parameters of some roles put in by hand."""
        model = self.pico.plain(name) if base is None else base
        tuned = AutoModelForCausalLM.from_pretrained(self.tuned(name)) if tuned is None else tuned
        other = dict(tuned.named_parameters(remove_duplicate=False))
        placed = find_sublayers(model).roles
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if placed[key.rpartition(".")[0]] in roles:
                    parameter.copy_(other[key] if weight == 1 else torch.lerp(parameter, other[key], weight))
        return model


@pytest.fixture(scope="module")
def dense(pico, tmp_path_factory):
    return Dense(pico, tmp_path_factory.mktemp("dense"))


@torch.no_grad()
def logits(model, ids, switch=None, setting=None):
    if switch is None:
        return model(ids).logits
    with switch.hold(switch.resolve(setting)):
        return model(ids).logits


@pytest.mark.parametrize("name", NAMES)
def test_every_mode_is_bit_for_bit(dense, pico, name):
    model, update, switch = dense.attach(name)
    ids = pico.ids()
    found = {mode: logits(model, ids, switch, mode) for mode in (*MODES, "attention+other")}
    assert torch.equal(found["none"], logits(pico.plain(name), ids))
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned(name)).eval()
    assert torch.equal(found["all"], logits(tuned, ids))
    for mode, roles in {**MODES, "attention+other": ("attention", "other")}.items():
        assert torch.equal(found[mode], logits(dense.reference(name, roles), ids)), mode
    assert len({tuple(one.flatten().tolist()) for one in found.values()}) == len(found)
    assert switch.default.value == "attention+other"
    assert update.is_unchanged()


def test_switching_back_and_forth_leaves_nothing(dense, pico):
    model, _, switch = dense.attach("llama")
    ids = pico.ids()
    first = [logits(model, ids, switch, mode) for mode in MODES]
    again = [logits(model, ids, switch, mode) for mode in reversed(MODES)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    base = pico.plain("llama").state_dict()
    for mode in ("none", "all"):
        with switch.hold(switch.resolve(mode)):
            state = model.state_dict()
            assert state.keys() == base.keys()
            assert all(torch.equal(state[key], base[key]) for key in base)
            assert all(torch.equal(one, base[key]) for key, one in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_sites_layers_and_globs(dense, pico):
    model, _, switch = dense.attach("llama")
    sites = {site.path: site for site in switch.sites}
    assert sites["model.layers.1.mlp.up_proj"].role == "ffn"
    assert sites["model.layers.1.mlp.up_proj"].layer == 1
    assert sites["model.norm"].role == sites["lm_head"].role == "other"
    assert sum(site.parameters for site in switch.sites) == sum(one.numel() for one in model.parameters())
    ids = pico.ids()
    reference = dense.reference("llama", ())
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned("llama"))
    reference.model.layers[1].mlp.load_state_dict(tuned.model.layers[1].mlp.state_dict())
    assert torch.equal(logits(model, ids, switch, {"ffn@1": 1}), logits(reference, ids))
    assert torch.equal(logits(model, ids, switch, {"model.layers.1.mlp.*": 1}), logits(reference, ids))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_weights_between_are_interpolated_once_and_bounded(dense, pico, name, monkeypatch):
    model, _, switch = dense.attach(name)
    ids = pico.ids()
    made = []
    real = torch.lerp
    monkeypatch.setattr(torch, "lerp", lambda *arguments: made.append(1) or real(*arguments))
    found = logits(model, ids, switch, {"attention": 0.3})
    count = len(made)
    assert count
    assert torch.equal(logits(model, ids, switch, {"attention": 0.3}), found)
    assert len(made) == count
    for weight in (0.4, 0.5, 0.6, 0.7):
        logits(model, ids, switch, {"attention": weight, "other": 1})
    assert len(made) == 5 * count
    kept = [
        len([one for one in tensor._ready if one != 1])
        for module in model.modules()
        for tensor in getattr(module, "_taia_tuned", {}).values()
    ]
    assert max(kept) == dense_layers._KEPT_MIXTURES == 2
    monkeypatch.undo()
    assert torch.equal(found, logits(dense.reference(name, ("attention",), 0.3), ids))


def test_masked_tensors_stay_on_the_disk(dense, pico, monkeypatch):
    model, update, switch = dense.attach("llama", inference_modules="none")
    read = []
    real = TunedFiles.read
    monkeypatch.setattr(TunedFiles, "read", lambda self, name, like: read.append(name) or real(self, name, like))
    ids = pico.ids()
    logits(model, ids, switch, "none")
    assert read == []
    assert update.files.bytes_in_use == 0
    logits(model, ids, switch, "attention")
    assert len(read) == 8
    assert all("self_attn" in name for name in read)
    logits(model, ids, switch, "attention")
    assert len(read) == 8
    tuned = load_file(dense.tuned("llama") / "model.safetensors")
    assert update.files.bytes_in_use == sum(one.nbytes for name, one in tuned.items() if "self_attn" in name)


def test_tied_embeddings_share_one_tensor(dense, pico):
    model, update, switch = dense.attach("gpt2")
    ids = pico.ids()
    logits(model, ids, switch, "all")
    with switch.hold(switch.resolve("all")):
        assert model.lm_head.weight is model.transformer.wte.weight
        tuned = model.lm_head.weight
    with switch.hold(switch.resolve({"lm_head": 1})):
        assert model.lm_head.weight is tuned
        assert model.transformer.wte.weight is model.transformer.wte._parameters["weight"]
    names = list(update.parameters())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


def test_tying_again_under_a_setting_keeps_the_base(dense, pico):
    model, _, switch = dense.attach("gpt2", inference_modules="all")
    model.tie_weights()  # evaluation harnesses do
    ids = pico.ids()
    assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]
    assert torch.equal(logits(model, ids, switch, "none"), logits(pico.plain("gpt2"), ids))


def _untied(pico, folder, tie):
    """A Llama whose head is tied or not, with other weights than the base's."""
    torch.manual_seed(7)
    config = AutoConfig.from_pretrained(pico.base("llama"), tie_word_embeddings=tie)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied_base", [True, False])
def test_one_tied_and_the_other_not(dense, pico, tmp_path, tied_base):
    base, tuned = _untied(pico, tmp_path / "base", tied_base), _untied(pico, tmp_path / "tuned", not tied_base)

    def change(tensors):
        for name, tensor in tensors.items():
            if "embed" in name or "lm_head" in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)

    tensors = load_file(tuned / "model.safetensors")
    assert ("lm_head.weight" in tensors) is tied_base
    change(tensors)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    report = write_dense(base, tuned, tmp_path / "dense")
    assert any("tied in the" in note for note in report.notes)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    model, _, switch = dense.attach(
        "llama", tmp_path / "dense", model=AutoModelForCausalLM.from_pretrained(base).eval()
    )
    ids = pico.ids()
    assert torch.equal(logits(model, ids, switch, "none"), logits(plain, ids))
    reference = AutoModelForCausalLM.from_pretrained(tuned).eval()
    assert torch.equal(logits(model, ids, switch, "all"), logits(reference, ids))
    assert not torch.equal(logits(plain, ids), logits(reference, ids))
    half = logits(model, ids, switch, {"other": 0.5})
    expected = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        head = torch.lerp(expected.lm_head.weight, reference.lm_head.weight, 0.5)
        first = torch.lerp(expected.model.embed_tokens.weight, reference.model.embed_tokens.weight, 0.5)
        expected.lm_head.weight = nn.Parameter(head)
        expected.model.embed_tokens.weight = nn.Parameter(first)
        for name, parameter in expected.named_parameters():
            if "norm" in name:
                parameter.lerp_(dict(reference.named_parameters())[name], 0.5)
    assert torch.equal(half, logits(expected, ids))


@pytest.mark.parametrize("rows", [70, 60])
def test_another_vocabulary(dense, pico, tmp_path, rows):
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned("llama"))
    tuned.resize_token_embeddings(rows, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "tuned")
    report = write_dense(pico.base("llama"), tmp_path / "tuned", tmp_path / "dense")
    assert any(f"64 rows in the base model and {rows}" in note for note in report.notes)
    model, _, switch = dense.attach("llama", tmp_path / "dense")
    ids = pico.ids().clamp(max=59)
    assert torch.equal(logits(model, ids, switch, "none"), logits(pico.plain("llama"), ids))
    found = logits(model, ids, switch, "all")
    assert found.shape[-1] == rows
    assert torch.equal(found, logits(tuned.eval(), ids))
    with pytest.raises(SettingError, match="another vocabulary"):
        switch.resolve({"other": 0.5})
    assert switch.resolve({"attention": 0.5})


def test_threads_with_other_settings_do_not_meet(dense, pico):
    model, _, switch = dense.attach("llama")
    ids = pico.ids()
    settings = ["none", "all", "attention", {"ffn": 0.5}]
    expected = [logits(model, ids, switch, setting) for setting in settings]
    model, _, switch = dense.attach("llama")  # nothing read yet: the threads read at once
    wrong, start = [], threading.Barrier(len(settings))

    def work(setting, right):
        start.wait()
        wrong.extend(1 for _ in range(15) if not torch.equal(logits(model, ids, switch, setting), right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(settings, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_rows_have_settings_of_their_own(dense, pico, name):
    model, _, switch = dense.attach(name)
    ids = pico.ids(rows=5)
    settings = ["all", "none", "attention", "ffn", {"attention": 0.5, "other": 1}]
    with torch.no_grad(), switch.hold(switch.resolve_rows(settings)):
        found = model(ids).logits
    for row, setting in enumerate(settings):
        torch.testing.assert_close(found[row], logits(model, ids[row : row + 1], switch, setting)[0])


@pytest.mark.parametrize(("name", "reason"), [("qwen3_moe", "expert"), ("opt", "all rows"), ("xlnet", "sequence")])
def test_rows_are_refused_where_they_cannot_be_told_apart(dense, name, reason):
    _, _, switch = dense.attach(name)
    with pytest.raises(SettingError, match=reason):
        switch.resolve_rows(["none", "all"])
    assert switch.resolve_rows(["all", "all"])


def test_rows_are_refused_where_a_tensor_is_read_outside_its_module(dense):
    model, _, switch = dense.attach("llama")
    with (
        switch.hold(switch.resolve_rows(["none", "all"])),
        pytest.raises(SettingError, match=r"'lm_head', whose tensors are read outside"),
    ):
        _ = model.lm_head.weight


def test_dtype_and_copies_follow_the_base(dense, pico):
    model, _, switch = dense.attach("llama")
    ids = pico.ids()
    right = {mode: logits(model, ids, switch, mode) for mode in MODES}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        own = copied.lm_head._taia_switch
        assert own is not switch
        own.default = "ffn"
        assert all(torch.equal(logits(copied, ids, own, mode), one) for mode, one in right.items())
    assert switch.default.value == "attention+other"
    model.to(torch.bfloat16)
    for setting in ("all", "none", {"attention": 0.5, "ffn": 1, "other": 1}):
        assert logits(model, ids, switch, setting).dtype == torch.bfloat16
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned("llama")).eval().to(torch.bfloat16)
    assert torch.equal(logits(model, ids, switch, "all"), logits(tuned, ids))
    plain = pico.plain("llama").to(torch.bfloat16)
    assert torch.equal(logits(model, ids, switch, "none"), logits(plain, ids))


def test_a_base_in_another_dtype_gives_the_fine_tune_in_that_dtype(dense, pico):
    model, _, switch = dense.attach("qwen3_moe", model=pico.plain("qwen3_moe", dtype=torch.bfloat16))
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned("qwen3_moe"), dtype=torch.bfloat16).eval()
    assert torch.equal(logits(model, pico.ids(), switch, "all"), logits(tuned, pico.ids()))


def test_tensors_read_under_inference_mode_serve_gradients_later(dense, pico):
    model, _, switch = dense.attach("llama")
    with torch.inference_mode():
        model(pico.ids())
    embedded = torch.randn(1, 3, 16, requires_grad=True)
    with switch.hold(switch.resolve("attention+other")):
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0


def test_code_that_reads_weights_itself_obeys(dense):
    model, _, switch = dense.attach("qwen3_moe")
    gate, experts = model.model.layers[0].mlp.gate, model.model.layers[0].mlp.experts
    tuned = AutoModelForCausalLM.from_pretrained(dense.tuned("qwen3_moe")).model.layers[0].mlp
    with switch.hold(switch.resolve("ffn")):
        assert torch.equal(gate.weight, tuned.gate.weight)
        assert torch.equal(experts.gate_up_proj, tuned.experts.gate_up_proj)
    with switch.hold(switch.resolve("attention")):
        assert gate.weight is gate._parameters["weight"]


@pytest.mark.slow
def test_a_compiled_model_obeys(dense, pico):
    model, _, switch = dense.attach("llama-single")
    ids = pico.ids()
    compiled = torch.compile(model, backend="eager")
    for mode in ("all", "none", "attention", "none", "all"):
        assert torch.equal(logits(compiled, ids, switch, mode), logits(model, ids, switch, mode)), mode
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "xlnet"])
def test_a_skeleton_can_be_attached_to(dense, pico, tmp_path, name):
    config = AutoConfig.from_pretrained(pico.base(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model, update, switch = dense.attach(name, model=model)
    assert switch.sites == dense.attach(name)[2].sites
    if name == "llama":
        assert model.lm_head.weight.is_meta
        assert model(pico.ids().to("meta")).logits.is_meta
    update.save(tmp_path / "copy")
    names = {path.name for path in dense.update(name).iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names


def test_saving_keeps_the_bytes(dense, tmp_path):
    _, update, _ = dense.attach("llama")
    update.save(tmp_path / "saved", state_dict={})
    for path in dense.update("llama").iterdir():
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes()
    tuned = load_file(dense.tuned("llama") / "model.safetensors")
    found = update.parameters()
    assert found.keys() == tuned.keys()
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)
    assert update.method == "DENSE"
    assert update.settings["model_type"] == "llama"


def test_what_cannot_be_done_is_refused(dense, pico):
    with pytest.raises(UnsupportedUpdateError, match=r"(?s)cannot be trained.*taia train --method full"):
        dense.attach("llama", is_trainable=True)
    model, update, _ = dense.attach("llama")
    with pytest.raises(UnsupportedUpdateError, match="cannot be replaced"):
        update.load({})
    model = pico.plain("llama")
    model.hf_device_map = {"model": 0, "lm_head": "disk"}
    with pytest.raises(UnsupportedUpdateError, match="device map"):
        dense.attach("llama", model=model)
    model = cpu_offload(pico.plain("llama"), torch.device("cpu"))
    with pytest.raises(UnsupportedUpdateError, match="device map"):
        dense.attach("llama", model=model)
    model = pico.plain("llama")
    model.is_quantized = True
    with pytest.raises(UnsupportedUpdateError, match="quantised"):
        dense.attach("llama", model=model)


def test_modules_that_go_around_their_attributes_are_refused():
    assert "fused kernel" in dense_layers.refusal(nn.LSTM(2, 2), {"weight_ih_l0": None})

    class Own(nn.Linear):
        scale = 1

    assert "'scale' of its own" in dense_layers.refusal(Own(2, 2), {"weight": None, "scale": None})
    assert dense_layers.refusal(nn.Linear(2, 2), {"weight": None, "bias": None}) is None


@pytest.fixture
def copied(dense, tmp_path):
    shutil.copytree(dense.update("llama"), tmp_path / "dense")
    return tmp_path / "dense"


def _edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_wrong_base_is_refused(dense, pico):
    for name, reason in (("qwen3", "type 'llama'; the base is 'qwen3'"), ("llama-single", "belong to no parameter")):
        with pytest.raises(UpdateMismatchError, match=reason):
            dense.attach(name, dense.update("llama"))
    config = AutoConfig.from_pretrained(pico.base("llama"), intermediate_size=32)
    with pytest.raises(UpdateMismatchError, match=r"down_proj.* shape \(16, 24\); \(16, 32\) fits"):
        dense.attach("llama", model=AutoModelForCausalLM.from_config(config))


def test_an_attach_that_fails_changes_nothing(dense, pico):
    model = pico.plain("llama")
    with pytest.raises(SettingError):
        dense.attach("llama", model=model, inference_modules="atention")
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight.requires_grad


def test_a_flipped_bit_of_a_shard_is_refused_by_the_manifest(dense, pico, tmp_path):
    TAIAForCausalLM.from_adapter(pico.base("llama"), dense.update("llama")).save_pretrained(tmp_path)
    assert TAIAForCausalLM.from_pretrained(tmp_path)
    shard = next(tmp_path.glob("dense/dense-00002-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RepositoryError, match="damaged: its sha256"):
        TAIAForCausalLM.from_pretrained(tmp_path)


def test_damaged_files_are_refused(dense, copied):
    shard = next(copied.glob("dense-00002-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(RepositoryError, match="truncated"):
        dense.attach("llama", copied)
    shard.unlink()
    with pytest.raises(RepositoryError, match="has no 'dense-00002"):
        dense.attach("llama", copied)


def test_a_file_that_is_gone_when_it_is_needed_is_an_error(dense, copied, pico):
    model, _, switch = dense.attach("llama", copied, inference_modules="none")
    shutil.rmtree(copied)
    logits(model, pico.ids(), switch, "none")
    with pytest.raises(RepositoryError, match="missing, truncated"):
        logits(model, pico.ids(), switch, "all")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda value: value.update(version=2), ConfigError, "Upgrade"),
        (lambda value: value.update(version="x"), ConfigError, "version 'x'"),
        (lambda value: value.update(aliases=[1]), ConfigError, "malformed 'aliases'"),
        (lambda value: value.update(resized={"a": [1]}), ConfigError, "malformed 'resized'"),
        (lambda value: value.update(aliases={"lm_head.weight": "x"}), ConfigError, "ties 'lm_head.weight' to 'x'"),
        (lambda value: value.update(model_type="gpt2"), UpdateMismatchError, "'gpt2'"),
    ],
)
def test_a_malformed_configuration_is_refused(dense, copied, change, error, match):
    _edit(copied / "dense_config.json", change)
    with pytest.raises(error, match=match):
        dense.attach("llama", copied)


def test_a_malformed_index_is_refused(dense, copied):
    index = copied / "dense.safetensors.index.json"
    _edit(index, lambda value: value["weight_map"].update({"model.extra.weight": "dense-00001-of-00001.safetensors"}))
    with pytest.raises(RepositoryError, match="dense-00001-of-00001"):
        dense.attach("llama", copied)
    _edit(index, lambda value: value.update(weight_map=[]))
    with pytest.raises(ConfigError, match="maps no tensors"):
        dense.attach("llama", copied)
