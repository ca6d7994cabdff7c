"""Fusing: as fast as the base, nothing else allowed meanwhile, and back bit for bit."""

import copy
import io
import pickle
import threading

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import SettingError, UnsupportedUpdateError
from taia_hub.updates import fusing
from taia_hub.updates.fusing import FuseReport
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, save_molora
from tests.conftest import logits
from tests.updates.peft.test_methods import TARGETS, VARIANTS, WORKS, config_of, known_here, lora

MODES = ("none", "attention", "ffn", "all")
BEYOND = {"attention": 1.5, "ffn": -1, "allow_extrapolation": True}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SAVED = {
    "head_saved": {"modules_to_save": ["lm_head"]},
    "norm_saved": {"modules_to_save": ["norm", "post_attention_layernorm"]},
    "mlp_saved": {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["mlp"]},
    "tokens": {"trainable_token_indices": [3, 4, 41]},
}
NO_MERGE = {"BEFT": "bias", "LILY": "not supported"}
# ^ PEFT itself cannot merge these here


def tensors(model):
    """Every tensor of a model: the object, where its data is, what it holds."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {key: (one, one.data_ptr(), one.requires_grad, one.detach().clone()) for key, one in named}


def assert_untouched(model, before):
    now = tensors(model)
    assert list(now) == list(before)
    for key, (one, place, trained, values) in before.items():
        assert now[key][0] is one, key
        assert now[key][1:3] == (place, trained), key
        assert torch.equal(now[key][3], values), key


def assert_equal_dicts(ours, expected):
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def assert_fuses(model, ids, mode):
    before, state, classes = tensors(model), {k: v.clone() for k, v in model.state_dict().items()}, kinds(model)
    expected, base = logits(model, ids, inference_modules=mode), logits(model, ids, inference_modules="none")
    with model.fused(mode):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
        assert torch.equal(logits(model, ids), base) == torch.equal(expected, base)
        assert_equal_dicts(model.state_dict(), state)
    assert_untouched(model, before)
    assert kinds(model) == classes
    assert torch.equal(logits(model, ids, inference_modules=mode), expected)


def randomised(model):
    """Changes every parameter that gets gradients."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def kinds(model):
    return [type(module) for module in model.modules()]


# --- What is folded ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", known_here(WORKS))
def test_a_method_fuses_and_comes_back_or_is_refused(pico, method):
    pico.adapter("llama", config_of(method), method)
    model, ids = pico.taia("llama", method), pico.ids()
    for mode in MODES:
        if method in NO_MERGE and mode != "none":
            before = tensors(model)
            with pytest.raises(UnsupportedUpdateError, match=NO_MERGE[method]):
                model.fuse(mode)
            assert_untouched(model, before)
            assert model.status().fused is None
        else:
            assert_fuses(model, ids, mode)


@pytest.mark.parametrize("label", [*VARIANTS, *SAVED])
def test_variants_of_lora_and_whole_modules_fuse(pico, label):
    pico.adapter("llama", lora(**{**VARIANTS, **SAVED}[label]), label)
    model, ids = pico.taia("llama", label), pico.ids()

    for mode in MODES:
        assert_fuses(model, ids, mode)


@pytest.mark.parametrize("name", ["gpt2", "opt", "mixtral", "qwen3_moe", "qwen3_next"])
def test_other_architectures_fuse(pico, name):
    """Conv1D, biases, parameters of experts (two of one module, so that wrappers are nested), linear attention."""
    model, ids = pico.taia(name), pico.ids()

    for mode in (*MODES, {"ffn": 0.5, "attention": 0.25}, {"*@0-1": [0.25, 1]}, BEYOND):
        assert_fuses(model, ids, mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_weights_are_those_of_pefts_merge(pico, dtype):
    """Bit for bit, in the modules of the mode; the others show the very tensors of the base."""
    model, peer = pico.taia("llama", dtype=dtype), pico.peft("llama", pico.adapter("llama"), dtype=dtype)
    peer.merge_adapter()
    merged = dict(peer.base_model.model.named_parameters())
    own = {key: one.clone() for key, one in model.named_parameters()}

    report = model.fuse("attention")

    changed = [key for key, one in model.named_parameters() if not torch.equal(one, own[key])]
    assert sorted(changed) == sorted(k for k in own if ".self_attn." in k and "base_layer" in k)
    assert all(torch.equal(dict(model.named_parameters())[key], merged[key]) for key in changed)
    assert report == FuseReport("attention", len(changed), sum(own[key].nbytes for key in changed))


def test_weights_between_0_and_1_fuse(pico):
    model, ids = pico.taia("llama"), pico.ids()

    for setting in ({"*": 0.5}, {"attention": 1, "ffn@0": 0.25}):
        assert_fuses(model, ids, setting)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_fuse(pico, tmp_path, tied):
    """One of two tied modules is folded: the other keeps what both have, and they are one again afterwards."""
    base = AutoModelForCausalLM.from_pretrained(pico.base("llama"), tie_word_embeddings=tied)
    base.tie_weights()  # the files hold two tensors, which loading leaves as they are
    base.save_pretrained(tmp_path / "base")
    for label, options in {
        "embeddings": {"target_modules": [*TARGETS, "embed_tokens"]},
        "head": {"target_modules": [*TARGETS, "lm_head"]},
        "tokens": {"trainable_token_indices": [3, 4, 41]},
    }.items():
        load = AutoModelForCausalLM.from_pretrained
        adapted = randomised(get_peft_model(load(tmp_path / "base"), lora(**options)))
        adapted.save_pretrained(tmp_path / label)
        model = TAIAForCausalLM.from_adapter(tmp_path / "base", tmp_path / label).eval()
        for mode in MODES:
            assert_fuses(model, pico.ids(), mode)
        with model.fused("all"):
            expected = logits(model, pico.ids())
        model.inference_modules = "all"
        model.merge_and_unload().save_pretrained(tmp_path / f"{label}-merged")
        assert torch.equal(logits(load(tmp_path / f"{label}-merged").eval(), pico.ids()), expected)


def test_tying_weights_while_fused_changes_nothing(pico, tmp_path):
    """lm-eval ties the weights of the model that it is given."""
    base = AutoModelForCausalLM.from_pretrained(pico.base("llama"), tie_word_embeddings=True)
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    adapted = randomised(get_peft_model(base, lora(target_modules=["embed_tokens", "q_proj"])))
    adapted.save_pretrained(tmp_path / "lora")
    model, ids = TAIAForCausalLM.from_adapter(tmp_path / "base", tmp_path / "lora").eval(), pico.ids()
    none, head = logits(model, ids, inference_modules="none"), model.lm_head.weight
    with model.fused("all"):
        before, saved = logits(model, ids), model.state_dict()
        model.tie_weights()
        assert torch.equal(logits(model, ids), before)
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is head
    assert torch.equal(logits(model, ids, inference_modules="none"), none)
    model.tie_weights()
    assert torch.equal(logits(model, ids, inference_modules="none"), none)


@pytest.fixture(scope="module")
def finetuned(pico, tmp_path_factory):
    """A full fine-tune of the small Llama, whose every parameter was changed."""
    folder = tmp_path_factory.mktemp("tuned")
    randomised(pico.plain("llama").requires_grad_(True)).save_pretrained(folder)
    return folder


def test_a_full_fine_tune_fuses_exactly(pico, finetuned):
    model, ids = TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned).eval(), pico.ids()
    for mode in (*MODES, "attention+other", {"*": 0.5}, BEYOND):
        expected = logits(model, ids, inference_modules=mode)
        assert_fuses(model, ids, mode)
        with model.fused(mode):
            assert torch.equal(logits(model, ids), expected)
            assert not [m for m in model.modules() if type(m).__getattr__ is not torch.nn.Module.__getattr__]


def test_experts_are_refused_and_masked_ones_are_fine(pico, tmp_path):
    save_molora(randomised(add_molora(pico.plain("llama"), MoLoraSettings(rank=4, alpha=6))), tmp_path / "mixture")
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "mixture").eval()
    before = tensors(model)

    with pytest.raises(UnsupportedUpdateError, match="depends on the token") as error:
        model.fuse("all")

    assert "attention" in error.value.hint
    assert_untouched(model, before)
    assert_fuses(model, pico.ids(), "attention")


# --- What is refused -----------------------------------------------------------------------------------------------
def test_a_quantised_layer_is_refused_with_the_way_out(pico):
    """Whole numbers stand for quantisation, whose backends are not installed everywhere."""
    model = pico.taia("llama")
    weight = model.model.layers[1].self_attn.o_proj.base_layer.weight
    values, weight.data = weight.data, weight.data.to(torch.int8)

    with pytest.raises(UnsupportedUpdateError, match=r"layers\.1\.self_attn\.o_proj' is quantised") as error:
        model.fuse("attention")

    assert "export_adapter" in error.value.hint
    weight.data = values
    assert model.fuse("ffn").modules == 6


def test_a_bias_that_the_base_has_no_place_for_is_refused(pico, tmp_path):
    adapted = randomised(get_peft_model(pico.plain("llama"), lora(target_modules=TARGETS, lora_bias=True)))
    adapted.save_pretrained(tmp_path)
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path).eval()

    for way in (model.fuse, lambda mode: model.merge_adapter()):
        with pytest.raises(UnsupportedUpdateError, match="PEFT cannot merge"):
            way("attention")

    assert model.status().fused is None


def test_offloaded_weights_are_refused(pico):
    model = pico.taia("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))

    with pytest.raises(UnsupportedUpdateError, match="not in memory"):
        model.fuse("attention")

    assert model.status().fused is None


def test_pefts_own_merge_and_switch_are_not_mixed_with_ours(pico):
    model, ids = pico.taia("llama"), pico.ids()
    layer = model.model.layers[0].self_attn.q_proj
    layer.merge()
    with pytest.raises(UnsupportedUpdateError, match="merged into its base weight already"):
        model.fuse("attention")
    layer.unmerge()
    layer._disable_adapters = True
    with pytest.raises(UnsupportedUpdateError, match="runs no adapter"):
        model.fuse("attention")
    layer._disable_adapters = False
    expected = logits(model, ids)

    with model.fused("attention"), pytest.raises(SettingError, match="merged"):
        layer.merge()

    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("failing", ["computing", "changing"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failure_in_the_middle_restores_everything(pico, finetuned, monkeypatch, failing, error):
    for model in (pico.taia("llama"), TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned).eval()):
        before, expected, classes = tensors(model), logits(model, pico.ids()), kinds(model)
        calls = []
        computing = "_tuned" if model.taia_config.update["kind"] == "dense" else "_check_state"
        name = {"computing": computing, "changing": "_show"}[failing]
        original = getattr(fusing, name)

        def fail(*args, original=original, calls=calls):
            calls.append(args)
            if len(calls) == 4:
                raise error
            return original(*args)

        with monkeypatch.context() as patched:
            patched.setattr(fusing, name, fail)
            with pytest.raises(error):
                model.fuse("attention")

        assert len(calls) == 4
        assert_untouched(model, before)
        assert kinds(model) == classes
        assert model.status().fused is None
        assert torch.equal(logits(model, pico.ids()), expected)
        model.load_state_dict(model.state_dict())


# --- While fused ---------------------------------------------------------------------------------------------------
def test_every_other_setting_raises_and_the_fused_one_is_taken(pico):
    model, ids = pico.taia("llama"), pico.ids()
    model.inference_modules = "all"
    model.fuse("attention")
    expected = logits(model, ids)

    def other(setting):
        with pytest.raises(SettingError, match="is fused") as error:
            logits(model, ids, inference_modules=setting)
        assert "unfuse" in error.value.hint
        with pytest.raises(SettingError, match="is fused"):
            model.generate(input_ids=ids, inference_modules=setting, max_new_tokens=1)

    for setting in ("all", {"attention": 0.5}, ["attention", "all"], ["none", "none"]):
        other(setting)
    for setting in ("all", {"attention": 0.5}):
        with pytest.raises(SettingError, match="is fused"), model.using(setting):
            pass
        with pytest.raises(SettingError, match="is fused"):
            model.inference_modules = setting
        with pytest.raises(SettingError, match="fused already"):
            model.fuse(setting)

    # Equal is what weighs the same at every site, however it is spelled.
    for setting in ("attention", {"attention": 1.0}, {"*.self_attn.*": 1}, ["attention", {"attention": 1}]):
        assert torch.equal(logits(model, ids, inference_modules=setting), expected)
    with model.using({"attention": 1}):
        assert torch.equal(logits(model, ids), expected)
    assert model.inference_modules == "attention"
    assert model.status().inference_modules == model.status().fused == "attention"
    assert model.status().roles["ffn"].masked == 6
    assert model.fuse({"attention": 1.0}) == model.fuse("attention")

    model.unfuse()
    assert model.inference_modules == "all"
    assert model.status().fused is None
    model.fuse("ffn")
    model.inference_modules = {"ffn": 1}
    model.unfuse()
    assert model.inference_modules == {"ffn": 1.0}


def test_a_thread_that_is_inside_another_setting_raises_at_its_next_call(pico):
    model, ids = pico.taia("llama"), pico.ids()
    entered, fused, came = threading.Event(), threading.Event(), {}

    def work(setting):
        with model.using(setting):
            logits(model, ids)
            entered.set()
            assert fused.wait(30)
            for name, call in {
                "forward": lambda: logits(model, ids),
                "generate": lambda: model.generate(input_ids=ids, max_new_tokens=1),
            }.items():
                try:
                    call()
                    came[setting, name] = None
                except SettingError as error:
                    came[setting, name] = error.message

    threads = []
    for setting in ("all", "attention"):
        threads.append(threading.Thread(target=work, args=(setting,)))
        threads[-1].start()
        assert entered.wait(30)
        entered.clear()
    model.fuse("attention")
    fused.set()
    for thread in threads:
        thread.join()

    for name in ("forward", "generate"):
        assert "'all' came, but the model is fused" in came["all", name]
        assert came["attention", name] is None


@pytest.mark.parametrize("changing", ["fuse", "unfuse", "merge_and_unload", "end of a block"])
def test_weights_do_not_change_while_a_call_runs(pico, changing):
    """A streamer stands for a thread that generates: it is called between two tokens."""
    model, ids, came = pico.taia("llama"), pico.ids(1), []
    block = model.fused("attention")
    change = {"fuse": lambda: model.fuse("attention"), "end of a block": lambda: block.__exit__(None, None, None)}
    if changing == "end of a block":
        block.__enter__()
    if changing == "unfuse":
        model.fuse("attention")

    class Changing:
        def put(self, value):
            try:
                change.get(changing, lambda: getattr(model, changing)())()
            except SettingError as error:
                came.append(error.message)

        def end(self):
            """Nothing."""

    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    thread_free = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, streamer=Changing(), **options), thread_free)

    assert len(came) == (1 if changing == "end of a block" else 4)
    assert all("2 of its calls are" in one or "1 of its calls is" in one for one in came)
    assert (model.status().fused == "attention") is (changing in ("unfuse", "end of a block"))
    model.unfuse()
    model.fuse("attention")  # between calls it is free again


def test_a_call_waits_until_the_weights_have_changed(pico, monkeypatch):
    model, ids, order = pico.taia("llama"), pico.ids(), []
    expected = logits(model, ids)
    folds, go = fusing._folds, threading.Event()

    def slowly(*args):
        thread.start()
        assert not go.wait(0.05)  # the call is not let in
        order.append("folded")
        return folds(*args)

    def call():
        found.append(logits(model, ids))
        order.append("called")
        go.set()

    found, thread = [], threading.Thread(target=call)
    monkeypatch.setattr(fusing, "_folds", slowly)
    model.fuse("attention")
    thread.join(30)

    assert order == ["folded", "called"]
    assert torch.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
def test_a_fused_block_lasts_as_long_as_another_needs_it(pico, first):
    """Two generators that hold one: whichever ends first leaves the other as it was."""
    model = pico.taia("llama", inference_modules="all")

    def holding():
        with model.fused("attention"):
            while True:
                yield model.status().inference_modules

    both = [holding(), holding()]
    assert [next(one) for one in both] == ["attention"] * 2
    both[first].close()
    assert next(both[1 - first]) == "attention"
    both[1 - first].close()

    assert model.status().fused is None
    assert model.status().inference_modules == "all"


def test_another_model_is_not_concerned(pico):
    model, other, ids = pico.taia("llama"), pico.taia("llama"), pico.ids()
    expected = logits(other, ids, inference_modules="all")

    with model.fused("attention"):
        assert torch.equal(logits(other, ids, inference_modules="all"), expected)


def test_blocks_nest_and_end_as_they_must(pico):
    model, ids = pico.taia("llama"), pico.ids()
    expected = logits(model, ids)
    with model.fused("attention") as same:
        assert same is model
        with model.fused("attention"):
            pass
        assert model.status().fused == "attention"  # the outer block still holds it
        with pytest.raises(SettingError, match="fused already"), model.fused("all"):
            pass
        assert model.status().fused == "attention"
    with pytest.raises(RuntimeError, match="out"), model.fused("all"):
        raise RuntimeError("out")
    assert model.status().fused is None
    with model.fused("attention"):
        model.unfuse()
        model.fuse("all")
    assert model.status().fused == "all"  # whoever fused it anew unfuses it
    model.unfuse()
    model.unfuse()

    assert torch.equal(logits(model, ids), expected)


def test_saving_gives_what_it_gives_unfused(pico, tmp_path):
    model = pico.taia("llama", is_trainable=True)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.lora_B["default"].weight.add_(1)
    model.save_pretrained(tmp_path / "unfused")

    with model.fused("all"):
        model.save_pretrained(tmp_path / "fused")
        model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())

    name = "adapter/adapter_model.safetensors"
    for folder in ("fused", "given"):
        assert_equal_dicts(load_file(tmp_path / folder / name), load_file(tmp_path / "unfused" / name))


def test_loading_and_training_raise(pico, tmp_path):
    model, ids = pico.taia("llama", is_trainable=True), pico.ids()
    state, file = model.state_dict(), load_file(pico.adapter("llama") / "adapter_model.safetensors")
    before = tensors(model)
    with model.fused("all"):
        for given in (state, file):
            with pytest.raises(SettingError, match="state dict"):
                model.load_state_dict(given)
        assert not any(one.requires_grad for name, one in model.named_parameters() if "base_layer" in name)
        model.train()
        with pytest.raises(SettingError, match="trained"):
            model(input_ids=ids, labels=ids)
        with torch.no_grad():
            model(input_ids=ids)
    assert_untouched(model, before)
    model.load_state_dict(state)
    model(input_ids=ids, labels=ids, inference_modules="all").loss.backward()
    assert model.model.layers[0].mlp.up_proj.lora_A["default"].weight.grad is not None


def test_moving_moves_the_originals_too(pico, finetuned):
    for model in (pico.taia("llama"), TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned).eval()):
        expected = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
        objects = dict(model.named_parameters())
        with model.fused("attention"):
            model.to(torch.bfloat16)
        assert_equal_dicts(model.state_dict(), expected)
        assert all(one is objects[key] for key, one in model.named_parameters())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_fused_and_can_be_unfused_alone(pico, finetuned, way):
    def copied(model):
        if way == "deepcopy":
            return copy.deepcopy(model)
        if way == "pickle":
            return pickle.loads(pickle.dumps(model))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    ids = pico.ids()
    for model in (pico.taia("llama"), TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned).eval()):
        expected = logits(model, ids, inference_modules="all")
        with model.fused("attention"):
            fused = logits(model, ids)
            twin = copied(model)
            assert torch.equal(logits(twin, ids), fused)
            with pytest.raises(SettingError, match="is fused"):
                logits(twin, ids, inference_modules="all")
            twin.unfuse()
            assert torch.equal(logits(twin, ids, inference_modules="all"), expected)
            assert torch.equal(logits(model, ids), fused)
            assert_equal_dicts(twin.state_dict(), model.state_dict())
            twin.load_state_dict(twin.state_dict())
        assert torch.equal(logits(model, ids, inference_modules="all"), expected)


def test_hooks_of_layers_and_of_what_is_inside_run(pico):
    model, ids = pico.taia("llama"), pico.ids()
    layer = model.model.layers[0].self_attn.q_proj
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("outer"))
    with model.fused("attention"):
        handle = layer.base_layer.register_forward_hook(lambda *_: seen.append("inner"))
        logits(model, ids)
        assert seen == ["inner", "outer"]
        handle.remove()
        logits(model, ids)
        assert seen == ["inner", "outer", "outer"]


def test_a_backbone_fuses(pico, tmp_path):
    pico.adapter("llama", lora(target_modules=[*TARGETS, "lm_head"]), "with_head")
    pico.taia("llama", "with_head").save_pretrained(tmp_path)
    model, ids = AutoModel.from_pretrained(tmp_path), pico.ids()
    with torch.no_grad():
        expected = model(ids, inference_modules="all").last_hidden_state
        with model.fused("all"):
            torch.testing.assert_close(model(ids).last_hidden_state, expected, **CLOSE)
            with pytest.raises(SettingError):
                model(ids, inference_modules="none")
        assert torch.equal(model(ids, inference_modules="all").last_hidden_state, expected)


def test_generation_equals_that_of_a_merged_model(pico):
    model, ids = pico.taia("llama"), pico.ids()
    merged = PeftModel.from_pretrained(pico.plain("llama"), str(pico.adapter("llama"))).merge_and_unload().eval()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = merged.generate(input_ids=ids, **options)

    with model.fused("all"):
        assert torch.equal(model.generate(input_ids=ids, **options), expected)
        assert torch.equal(model.generate(input_ids=ids, cache_implementation="static", **options), expected)
