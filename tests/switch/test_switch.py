"""The switch: setter, block and keyword; rows, threads, tasks, copies of the call; and nothing else changes."""

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoHaConfig
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import TextIteratorStreamer

from taia_hub.errors import SettingError
from taia_hub.switch.switch import KeepSetting
from taia_hub.switch.weight import RowWeights
from tests.conftest import logits

MODES = ["none", "attention", "ffn", "all"]
ROWS_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def greedy(model, ids, **keywords):
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **keywords}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)


# --- Where a setting comes from ------------------------------------------------------------------------------------
def test_setter_block_and_keyword_agree(pico):
    model, ids = pico.taia("llama"), pico.ids()
    for mode in MODES:
        by_keyword = logits(model, ids, inference_modules=mode)
        with model.using(mode):
            by_block = logits(model, ids)
        model.inference_modules = mode
        assert model.inference_modules == mode
        assert torch.equal(logits(model, ids), by_keyword)
        assert torch.equal(by_block, by_keyword)


def test_the_keyword_wins_over_the_block_and_the_block_over_the_setter(pico):
    model, ids = pico.taia("llama", inference_modules="all"), pico.ids()
    expected = {mode: logits(model, ids, inference_modules=mode) for mode in MODES}

    with model.using("attention"):
        with model.using("ffn"):
            assert torch.equal(logits(model, ids, inference_modules="none"), expected["none"])
            assert torch.equal(logits(model, ids), expected["ffn"])
        assert torch.equal(logits(model, ids), expected["attention"])
        model.inference_modules = "none"
        assert torch.equal(logits(model, ids), expected["attention"])
    assert torch.equal(logits(model, ids), expected["none"])


def test_a_block_is_left_after_an_exception(pico):
    model, ids = pico.taia("llama"), pico.ids()
    before = logits(model, ids)

    with pytest.raises(ZeroDivisionError), model.using("none"):
        1 / 0  # noqa: B018
    with pytest.raises(IndexError):
        logits(model, torch.tensor([[1000]]), inference_modules="none")

    assert torch.equal(logits(model, ids), before)
    assert model.status().inference_modules == "attention"


def test_a_setting_leaves_what_is_published_alone(pico):
    model = pico.taia("llama", inference_modules={"attention": 1, "ffn": 0.5})
    published = model.taia_config.to_dict()

    model.inference_modules = "all"
    with model.using("none"):
        logits(model, pico.ids(), inference_modules="ffn")

    assert model.taia_config.to_dict() == published
    assert model.taia_config.setting.value == {"attention": 1.0, "ffn": 0.5}


def test_a_mapping_is_read_back_as_it_was_set(pico):
    model = pico.taia("llama")
    setting = {"attention": 1.0, "ffn@1": 0.25, "model.layers.0.mlp.up_proj": 0.5}

    model.inference_modules = setting

    assert model.inference_modules == setting
    assert model.status().inference_modules == setting


def test_a_later_entry_of_a_mapping_wins_whatever_was_set_before(pico):
    """Two mappings with the same entries in another order are two settings."""
    model, ids = pico.taia("llama"), pico.ids()

    wide_last = logits(model, ids, inference_modules={"ffn@0": 0.0, "ffn": 1.0})
    narrow_last = logits(model, ids, inference_modules={"ffn": 1.0, "ffn@0": 0.0})

    assert torch.equal(wide_last, logits(model, ids, inference_modules="ffn"))
    assert not torch.equal(narrow_last, wide_last)


@pytest.mark.parametrize(
    "setting", ["atention", {"ffn": 1.5}, {"ffn": float("nan")}, {"model.layers.9.*": 1}, {"ffn@5": 1}, 3, ["none"]]
)
def test_a_setting_that_is_not_understood_changes_nothing(pico, setting):
    model, ids = pico.taia("llama"), pico.ids()
    before = logits(model, ids)

    with pytest.raises(SettingError):
        model.inference_modules = setting
    with pytest.raises(SettingError), model.using(setting):
        pass
    if not isinstance(setting, list):
        with pytest.raises(SettingError):
            logits(model, ids, inference_modules=setting)

    assert model.inference_modules == "attention"
    assert torch.equal(logits(model, ids), before)


def test_only_calls_take_a_list(pico):
    model = pico.taia("llama")

    with pytest.raises(SettingError, match="only `forward` and `generate`"):
        model.inference_modules = ["none", "all"]
    with pytest.raises(SettingError, match="only `forward` and `generate`"), model.using(["none", "all"]):
        pass


# --- Rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "qwen2_moe"])
def test_rows_equal_single_runs(pico, name):
    model, ids = pico.taia(name), pico.ids(4)
    settings = [*MODES[:3], {"attention": 0.5, "ffn": 0.25}]

    mixed = logits(model, ids, inference_modules=settings)

    for row, setting in enumerate(settings):
        single = logits(model, ids[row : row + 1], inference_modules=setting)
        torch.testing.assert_close(mixed[row : row + 1], single, **ROWS_TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2_moe"])
def test_rows_generate_the_tokens_of_single_runs(pico, name):
    model, ids = pico.taia(name), pico.ids(4)

    mixed = greedy(model, ids, inference_modules=MODES)

    assert torch.equal(
        mixed, torch.cat([greedy(model, ids[i : i + 1], inference_modules=m) for i, m in enumerate(MODES)])
    )
    assert len({tuple(row[7:]) for row in greedy(model, ids[:1].repeat(4, 1), inference_modules=MODES).tolist()}) > 1


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_rows_with_beams_equal_single_runs(pico, name):
    model, ids = pico.taia(name), pico.ids(4)
    beams = {"num_beams": 3, "num_return_sequences": 2}

    mixed = greedy(model, ids, inference_modules=MODES, **beams)

    single = [greedy(model, ids[i : i + 1], inference_modules=mode, **beams) for i, mode in enumerate(MODES)]
    assert torch.equal(mixed, torch.cat(single))


def test_rows_with_sampling_repeat_each_row(pico):
    """Several samples of a prompt stand under the setting of that prompt."""
    model, ids = pico.taia("llama"), pico.ids(2)
    options = {"do_sample": True, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}

    out = greedy(model, ids, inference_modules=["none", "all"], top_k=0, temperature=1.0, **options)

    for row, mode in enumerate(["none"] * 3 + ["all"] * 3):
        expected = logits(model, out.sequences[row : row + 1, :-1], inference_modules=mode)[0, 6:]
        ours = torch.stack([score[row] for score in out.scores])
        finite = ours.isfinite()  # the end token is forbidden
        torch.testing.assert_close(ours[finite], expected[finite], **ROWS_TOLERANCE)


def test_masked_rows_are_not_computed(pico):
    model, ids = pico.taia("llama"), pico.ids(3)
    for name, parameter in model.named_parameters():
        if "mlp" in name and "lora_" in name:
            parameter.data.fill_(float("nan"))

    mixed = logits(model, ids, inference_modules=["none", "ffn", "attention"])

    assert mixed.isfinite().all(dim=(1, 2)).tolist() == [True, False, True]
    assert logits(model, ids, inference_modules="attention").isfinite().all()


def test_the_work_of_an_update_goes_by_the_rows_that_it_acts_on(pico):
    model, ids = pico.taia("llama"), pico.ids(4)

    def work(setting):
        with FlopCounterMode(display=False) as counter:
            logits(model, ids, inference_modules=setting)
        return counter.get_total_flops()

    none, everywhere = work("none"), work("all")

    assert work(["none", "all", "none", "none"]) - none == (everywhere - none) / 4
    assert none < work("attention") < everywhere


def test_the_same_setting_in_every_row_is_that_setting(pico):
    """Rows that agree need no treatment by row, so that any update takes them."""
    model, ids = pico.taia("mixtral"), pico.ids(2)

    assert torch.equal(
        logits(model, ids, inference_modules=["ffn", "ffn"]), logits(model, ids, inference_modules="ffn")
    )


def test_rows_of_embeddings_as_inputs(pico):
    model, ids = pico.taia("llama"), pico.ids(2)
    embeddings = model.get_input_embeddings()(ids).detach()

    with torch.no_grad():
        mixed = model(inputs_embeds=embeddings, inference_modules=["none", "all"]).logits

    assert torch.equal(mixed, logits(model, ids, inference_modules=["none", "all"]))


def test_rows_have_gradients_of_their_own(pico):
    model, ids = pico.taia("llama", is_trainable=True), pico.ids(2)
    weight = model.model.layers[0].mlp.up_proj.lora_B["default"].weight

    def gradient(rows, setting):
        out = model(input_ids=ids[rows], inference_modules=setting).logits
        return torch.autograd.grad(out.square().sum(), weight)[0]

    mixed = gradient([0, 1], ["attention", "all"])

    torch.testing.assert_close(mixed, gradient([1], "all"), **ROWS_TOLERANCE)


@pytest.mark.parametrize("settings", [[], ["none"], ["none", "all", "all"], ["none", "nothing"], ["none", ["all"]]])
def test_a_wrong_list_is_refused(pico, settings):
    model, ids = pico.taia("llama"), pico.ids(2)

    with pytest.raises(SettingError):
        logits(model, ids, inference_modules=settings)
    with pytest.raises(SettingError):
        greedy(model, ids, inference_modules=settings)

    assert model.status().inference_modules == "attention"


def test_a_list_without_inputs_is_refused(pico):
    with pytest.raises(SettingError, match="without a batch"):
        pico.taia("llama").generate(inference_modules=["none", "all"], max_new_tokens=1)


@pytest.mark.parametrize(
    ("name", "label", "reason"),
    [
        ("mixtral", "lora", "experts' parameters are shared"),
        ("llama", "dora-of-both", "no forward by row"),
        ("llama", "loha-of-both", "no forward by row"),
        ("xlnet", "lora", "sequence first"),
    ],
)
def test_rows_are_refused_where_they_cannot_differ(pico, name, label, reason):
    if label == "dora-of-both":
        pico.adapter(name, pico.lora(name, use_dora=True), label)
    if label == "loha-of-both":
        pico.adapter(name, LoHaConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"), label)
    model, ids = pico.taia(name, label), pico.ids(2)
    before = logits(model, ids)

    with pytest.raises(SettingError, match=reason):
        logits(model, ids, inference_modules=["none", "all"])
    with pytest.raises(SettingError, match=reason):
        greedy(model, ids, inference_modules=["none", "all"])

    assert torch.equal(logits(model, ids), before)


def test_experts_that_are_masked_alike_leave_rows_free(pico):
    """Only modules at which the rows differ must be able to treat them differently."""
    model, ids = pico.taia("mixtral"), pico.ids(2)

    mixed = logits(model, ids, inference_modules=["none", "attention"])

    single = logits(model, ids[1:], inference_modules="attention")
    torch.testing.assert_close(mixed[1:], single, **ROWS_TOLERANCE)


def test_rows_that_a_layer_regroups_are_refused():
    weights = RowWeights((0.0, 1.0))

    assert weights.per_row(6) == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    for rows in (0, 1, 3):
        with pytest.raises(SettingError, match="regroups"):
            weights.per_row(rows)


def test_acting_rows_are_found_as_a_slice_or_by_index():
    device = torch.device("cpu")

    assert RowWeights((0.0, 1.0, 0.0, 1.0)).select(4, device) == (slice(1, 4, 2), 1.0)
    assert RowWeights((0.0, 0.5)).select(4, device) == (slice(2, 4, 1), 0.5)
    rows, scale = RowWeights((1.0, 0.5, 0.0, 0.0, 1.0)).select(5, device)
    assert rows.tolist() == [0, 1, 4]
    assert scale.tolist() == [1.0, 0.5, 1.0]


# --- Threads, tasks, other models ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_sixteen_threads_generate_as_one_does(pico, name):
    model, ids = pico.taia(name), pico.ids(1)
    expected = {mode: greedy(model, ids, inference_modules=mode) for mode in MODES}
    exact = {mode: logits(model, ids, inference_modules=mode) for mode in MODES}
    start = threading.Barrier(16)

    def run(number):
        mode, correct = MODES[number % 4], []
        start.wait()
        for turn in range(4):
            if (number // 4 + turn) % 2:
                correct.append(torch.equal(greedy(model, ids, inference_modules=mode), expected[mode]))
            else:
                with model.using(mode):
                    correct.append(torch.equal(logits(model, ids), exact[mode]))
        return correct

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(run, range(16)))

    assert results == [[True] * 4] * 16
    assert model.status().inference_modules == "attention"


def test_tasks_keep_their_settings(pico):
    model, ids = pico.taia("llama"), pico.ids(1)
    expected = {mode: logits(model, ids, inference_modules=mode) for mode in MODES}

    async def run(mode):
        with model.using(mode):
            results = []
            for _ in range(3):
                await asyncio.sleep(0)
                results.append(torch.equal(logits(model, ids), expected[mode]))
                results.append(await asyncio.to_thread(lambda: torch.equal(logits(model, ids), expected[mode])))
            return all(results)

    async def everyone():
        return await asyncio.gather(*(run(mode) for mode in MODES * 4))

    assert asyncio.run(everyone()) == [True] * 16


def test_a_new_thread_begins_with_the_setting_of_the_model(pico):
    model, ids = pico.taia("llama"), pico.ids(1)
    attention = logits(model, ids)
    seen = []

    with model.using("none"):
        thread = threading.Thread(target=lambda: seen.append(logits(model, ids)))
        thread.start()
        thread.join()

    assert torch.equal(seen[0], attention)


def test_a_streamer_runs_in_a_thread_with_the_keyword(pico, tokenizer):
    model, ids = pico.taia("llama"), pico.ids(1)
    for mode in ("none", "all"):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        thread = threading.Thread(
            target=greedy, args=(model, ids), kwargs={"streamer": streamer, "inference_modules": mode}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text == tokenizer.decode(greedy(model, ids, inference_modules=mode)[0, 7:])


def test_a_second_model_does_not_see_the_setting(pico):
    one, two, ids = pico.taia("llama"), pico.taia("llama", inference_modules="all"), pico.ids()
    expected = logits(two, ids)

    with one.using("none"):
        assert torch.equal(logits(two, ids), expected)
        with two.using("ffn"):
            assert one.status().inference_modules == "none"
        assert two.status().inference_modules == "all"


def test_an_assistant_model_keeps_its_own_setting(pico, monkeypatch):
    model, assistant, ids = pico.taia("llama"), pico.taia("llama", inference_modules="none"), pico.ids(1)
    expected = greedy(model, ids, inference_modules="all")
    seen = set()
    acting = type(assistant._taia_switch).acting

    def watched(switch):
        seen.add((switch is assistant._taia_switch, acting(switch).settings[0].name))
        return acting(switch)

    monkeypatch.setattr(type(assistant._taia_switch), "acting", watched)
    result = greedy(model, ids, inference_modules="all", assistant_model=assistant)

    assert torch.equal(result, expected)
    assert seen == {(False, "all"), (True, "none")}


# --- Activation checkpointing --------------------------------------------------------------------------------------
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_checkpointing_recomputes_under_the_setting_of_its_forward(pico, name, use_reentrant):
    model, ids = pico.taia(name, is_trainable=True).train(), pico.ids()

    def gradients(checkpointing):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        else:
            model.gradient_checkpointing_disable()
        with model.using("attention"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()  # outside the block, where the setting is "all"
        return {key: value.grad for key, value in model.named_parameters() if value.requires_grad}

    plain, recomputed = gradients(False), gradients(True)

    assert any(gradient is not None for gradient in plain.values())
    for key, gradient in plain.items():
        assert (gradient is None) == (recomputed[key] is None), key
        assert gradient is None or torch.equal(gradient, recomputed[key]), key


def test_a_checkpointing_function_of_the_caller_is_used(pico):
    model, ids, calls = pico.taia("llama", is_trainable=True).train(), pico.ids(), []

    def own(function, *args, **keywords):
        calls.append(function)
        return checkpoint(function, *args, use_reentrant=False, **keywords)

    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=own)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    assert len(calls) == 2


# --- Nothing else changes ------------------------------------------------------------------------------------------
def everything(model):
    """All that a switch must leave alone."""
    return {
        "parameters": {
            name: (id(value), value._version, value.requires_grad, value.dtype, value.device, value.data_ptr())
            for name, value in model.named_parameters()
        },
        "buffers": {name: (id(value), value._version) for name, value in model.named_buffers()},
        "state": {name: value.data_ptr() for name, value in model.state_dict().items()},
        "modules": {name: (id(module), type(module), module.training) for name, module in model.named_modules()},
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "model": (model.training, model.dtype, model.device, model.is_gradient_checkpointing),
        "parametrized": [name for name, module in model.named_modules() if hasattr(module, "parametrizations")],
    }


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize(("name", "label"), [("llama", "lora"), ("mixtral", "lora"), ("llama", "loha-of-both")])
def test_switching_changes_nothing_else(pico, name, label, is_trainable):
    if label == "loha-of-both":
        pico.adapter(name, LoHaConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"), label)
    model, ids = pico.taia(name, label, is_trainable=is_trainable), pico.ids()
    before = everything(model)

    for mode in MODES:
        model.inference_modules = mode
        logits(model, ids)
        with model.using("none"):
            logits(model, ids)
        logits(model, ids, inference_modules="ffn")
        greedy(model, ids, inference_modules="attention")

    assert everything(model) == before
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert bool(trained) == is_trainable
    assert all("lora_" in key or "hada_" in key for key in trained)


def test_the_model_holds_the_tensors_of_peft_and_no_more(pico):
    """Memory beyond PEFT's is that of plain Python objects."""
    model = pico.taia("llama")
    reference = pico.peft("llama", pico.adapter("llama")).base_model.model

    def sizes(one):
        tensors = [*one.named_parameters(), *one.named_buffers()]
        return {name: (value.shape, value.dtype) for name, value in tensors}

    assert sizes(model) == sizes(reference)
    logits(model, pico.ids(2), inference_modules=["none", "all"])
    assert sizes(model) == sizes(reference)
    held = [key for module in model.modules() for key, value in module.__dict__.items() if torch.is_tensor(value)]
    expected = [
        key for module in reference.modules() for key, value in module.__dict__.items() if torch.is_tensor(value)
    ]
    assert sorted(held) == sorted(expected)


def test_many_settings_do_not_grow_the_switch(pico):
    model = pico.taia("llama")
    for step in range(600):
        model._taia_switch.resolve({"attention": step / 600})

    assert len(model._taia_switch._cache) <= 256


# --- Status --------------------------------------------------------------------------------------------------------
def test_status_counts_by_role(pico):
    model = pico.taia("llama")
    parameters = dict.fromkeys(("self_attn", "mlp"), 0)
    for name, value in model.named_parameters():
        if "lora_" in name:
            parameters["mlp" if "mlp" in name else "self_attn"] += value.numel()

    status = model.status()

    attention, ffn = status.roles["attention"], status.roles["ffn"]
    assert (attention.adapted, attention.acting, attention.masked) == (8, 8, 0)
    assert (ffn.adapted, ffn.acting, ffn.masked) == (6, 0, 6)
    assert (attention.weights, ffn.weights) == ({1.0: 8}, {0.0: 6})
    assert (attention.parameters, ffn.parameters) == (parameters["self_attn"], parameters["mlp"])
    assert status.roles["other"].adapted == 0
    assert status.methods == {"lora.Linear": 14}
    assert status.unplaced == ()


@pytest.mark.parametrize(
    ("setting", "attention", "ffn"),
    [
        ("none", {0.0: 8}, {0.0: 6}),
        ("ffn", {0.0: 8}, {1.0: 6}),
        ("all", {1.0: 8}, {1.0: 6}),
        ({"attention": 1, "ffn@1": 0.5}, {1.0: 8}, {0.0: 3, 0.5: 3}),
        ({"model.layers.0.*": 0.25}, {0.0: 4, 0.25: 4}, {0.0: 3, 0.25: 3}),
    ],
)
def test_status_follows_the_setting(pico, setting, attention, ffn):
    model = pico.taia("llama")

    with model.using(setting):
        status = model.status()

    assert (dict(status.roles["attention"].weights), dict(status.roles["ffn"].weights)) == (attention, ffn)
    assert status.roles["ffn"].masked == ffn.get(0.0, 0)
    assert status.roles["ffn"].acting == 6 - ffn.get(0.0, 0)


def test_status_of_experts_counts_each_parameter_once(pico):
    model = pico.taia("mixtral")

    status = model.status()

    assert status.roles["ffn"].adapted == 4  # two parameters a layer
    assert status.methods == {"lora.Linear": 8, "lora.ParamWrapper": 4}
    paths = {site.path for site in model._taia_switch.sites}
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"} <= paths


def test_status_names_what_could_not_be_placed(pico):
    """A model that no rule knows: what has no clear role is `other` and named."""
    model = pico.taia("llama")
    model._taia_switch.unplaced = ("model.layers.0.mystery",)

    assert model.status().unplaced == ("model.layers.0.mystery",)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_keeps_the_setting_when_the_setter_is_used_before_backward(pico, use_reentrant):
    model, ids = pico.taia("llama", is_trainable=True).train(), pico.ids()

    def gradients(checkpointed):
        one = copy.deepcopy(model)
        one.inference_modules = "attention"
        if checkpointed:
            one.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            one.enable_input_require_grads()
        loss = one(input_ids=ids, labels=ids).loss
        one.inference_modules = "all"
        loss.backward()
        return {name: p.grad for name, p in one.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_function_of_checkpointing_is_wrapped_with_the_models_switch(pico):
    model = pico.taia("llama", is_trainable=True)
    model.gradient_checkpointing_enable()
    assert all(
        isinstance(module._gradient_checkpointing_func, KeepSetting)
        for module in model.modules()
        if hasattr(module, "_gradient_checkpointing_func")
    )
    assert KeepSetting(checkpoint, model._taia_switch).switch is model._taia_switch


def test_rows_seen_in_inference_mode_serve_gradients_later(pico):
    model, ids = pico.taia("llama", is_trainable=True), pico.ids(4)
    rows = ["all", "none", "all", {"attention": 0.5}]
    with torch.inference_mode():
        model(ids, inference_modules=rows)
    model(input_ids=ids, labels=ids, inference_modules=rows).loss.backward()
    _, weights = RowWeights((1.0, 0.5)).select(2, torch.device("cpu"))
    assert not weights.is_inference()


def test_a_weight_that_only_equals_a_number_is_refused_whatever_came_before(pico):
    model = pico.taia("llama")
    model.inference_modules = {"attention": 1}
    with pytest.raises(SettingError, match="True"):
        model.inference_modules = {"attention": True}
