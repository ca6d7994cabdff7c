"""Learned weights: gradients are finite differences, by row and under checkpointing; nothing else changes."""

import copy

import pytest
import torch
from peft import LoHaConfig
from torch.autograd import gradcheck

from taia_hub.errors import ConfigError, SettingError
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.learned import learned
from taia_hub.switch.weight import LearnedWeight
from taia_hub.updates.dense.difference import write_dense
from taia_hub.updates.dense.update import attach_dense
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, attach_molora, save_molora
from taia_hub.updates.options import AttachOptions
from tests.conftest import logits

ROWS = 3
DIFFERENCES = {"eps": 1e-3, "atol": 2e-4, "rtol": 1e-3, "nondet_tol": 1e-12}  # norms and routers count in float32


@pytest.fixture(scope="module")
def models(pico, tmp_path_factory):
    """Makes models in float64, once each: name and kind of update to the model and its switch."""
    made = {}

    def options(model):
        return AttachOptions(find_sublayers(model).roles, inference_modules="all")

    def molora(name, folder):
        torch.manual_seed(1)
        mixture = add_molora(pico.plain(name), MoLoraSettings(rank=4, alpha=8, dropout=0.0))
        with torch.no_grad():
            for parameter in mixture.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)
        save_molora(mixture, folder)
        model = pico.plain(name)
        return model, attach_molora(model, folder, options(model))[1]

    def dense(name, folder):
        tuned = pico.plain(name)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        tuned.save_pretrained(folder / "tuned")
        write_dense(pico.base(name), folder / "tuned", folder / "dense")
        model = pico.plain(name)
        return model, attach_dense(model, folder / "dense", options(model))[1]

    def make(kind, name):
        if (kind, name) not in made:
            if kind == "lora":
                model = pico.taia(name, inference_modules="all")
                switch = model._taia_switch
            else:
                model, switch = {"molora": molora, "dense": dense}[kind](name, tmp_path_factory.mktemp("learned"))
            model.config._experts_implementation = "eager"  # the fused one takes no float64
            made[kind, name] = model.double().eval().requires_grad_(False), switch
        return made[kind, name]

    return make


def losses(model, ids, **keywords):
    """The loss of each row."""
    scores = model(input_ids=ids, **keywords).logits[:, :-1].log_softmax(-1)
    return -scores.gather(-1, ids[:, 1:, None]).sum((1, 2))


def values(switch, rows=None, dtype=torch.float64):
    """A weight for each site, and row; the first is 0, which masks an update elsewhere."""
    shape = (len(switch.sites),) if rows is None else (len(switch.sites), rows)
    result = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    result[0] = 0
    return result.requires_grad_()


KINDS = [("lora", "llama"), ("lora", "gpt2"), ("molora", "llama"), ("dense", "llama"), ("dense", "gpt2")]
MOE = [("lora", "qwen3_moe"), ("dense", "mixtral")]


@pytest.mark.parametrize(("kind", "name"), [*KINDS, *MOE])
def test_gradients_are_finite_differences(pico, models, kind, name):
    model, switch = models(kind, name)
    ids = pico.ids(2, 4)

    def loss(weights):
        with switch.hold(learned(switch, weights.unbind())):
            return losses(model, ids)

    assert gradcheck(loss, values(switch), **DIFFERENCES)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_gradients_by_row_are_each_rows_own(pico, models, kind, name):
    """Off the diagonal of rows the differences are zero, and so must the gradients be."""
    model, switch = models(kind, name)
    ids = pico.ids(1, 4).expand(ROWS, -1)

    def loss(weights):
        with switch.hold(learned(switch, weights.unbind())):
            return losses(model, ids)

    weights = values(switch, ROWS)
    assert gradcheck(loss, weights, **DIFFERENCES, fast_mode=True)
    each = torch.stack([torch.autograd.grad(one, weights, retain_graph=True)[0] for one in loss(weights)])  # (R, S, R)
    for row, gradient in enumerate(each):
        assert gradient[:, row].abs().min() > 0
        assert not gradient[:, [other for other in range(ROWS) if other != row]].any()
        alone = weights.detach()[:, row].requires_grad_()
        with switch.hold(learned(switch, alone.unbind())):
            losses(model, ids[:1]).sum().backward()
        torch.testing.assert_close(alone.grad, gradient[:, row], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "name"), [*KINDS, *MOE])
def test_whole_weights_are_the_modes_and_the_same_without_gradients(pico, models, kind, name):
    model, switch = models(kind, name)
    ids = pico.ids(2)
    for mode in ("attention", "all", "none"):
        with switch.hold(switch.resolve(mode)):
            expected = logits(model, ids)
            weights = [torch.tensor(float(one), requires_grad=True) for one in switch.acting().weights]
        with switch.hold(learned(switch, weights)):
            torch.testing.assert_close(model(input_ids=ids).logits, expected)
            torch.testing.assert_close(logits(model, ids), expected)
            with torch.inference_mode():
                torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_numbers_tensors_and_rows_may_be_mixed(pico, models):
    model, switch = models("lora", "llama")
    ids = pico.ids(1).expand(2, -1)
    weights = [0.0, torch.tensor(0.5), torch.tensor([1.0, 0.25]), *[1.0] * (len(switch.sites) - 3)]
    paths = [site.path for site in switch.sites]
    settings = [
        dict(zip(paths, (0, 0.5, of_row, *weights[3:]), strict=True)) for of_row in (1.0, 0.25)
    ]  # as a user writes them

    with switch.hold(learned(switch, weights)):
        found = logits(model, ids)

    torch.testing.assert_close(found, logits(model, ids, inference_modules=settings))


def test_beams_repeat_each_rows_weights(pico, models):
    model, switch = models("lora", "llama")
    ids = pico.ids(2)
    weights = values(switch, 2)
    with switch.hold(learned(switch, weights.unbind())):
        found = losses(model, ids.repeat_interleave(2, 0))
        expected = losses(model, ids)
        with pytest.raises(SettingError, match="3 rows where the call has a setting for each of 2"):
            losses(model, pico.ids(3))
    torch.testing.assert_close(found, expected.repeat_interleave(2))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("rows", [None, 2])
def test_recomputation_sees_the_same_weights_and_gradients_arrive(pico, use_reentrant, rows):
    """The block ends before `backward`, and a checkpointed model is in training, which has nothing else to train."""
    model, ids = pico.taia("llama").double().train().requires_grad_(False), pico.ids()
    switch = model._taia_switch

    def gradient(model):
        weights = [one.detach().requires_grad_() for one in values(switch, rows)]
        with model._taia_switch.hold(learned(switch, weights)):
            loss = losses(model, ids).sum()
        with model.using("none"):
            loss.backward()
        return torch.stack([one.grad for one in weights])

    expected, again = gradient(model), copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again.enable_input_require_grads()
    torch.testing.assert_close(gradient(again), expected)
    assert expected.abs().min() > 0


@pytest.mark.parametrize("kind", ["lora", "molora", "dense"])
def test_updates_in_16_bits_give_gradients_in_the_weights_dtype(pico, models, kind):
    model, _ = models(kind, "llama")
    ids = pico.ids()

    def gradient(model, dtype):
        switch = next(module._taia_switch for module in model.modules() if hasattr(module, "_taia_switch"))
        weights = values(switch).detach().to(dtype).requires_grad_()
        with switch.hold(learned(switch, weights.unbind())):
            losses(model, ids).sum().backward()
        return weights.grad

    exact, found = gradient(model, torch.float64), gradient(copy.deepcopy(model).bfloat16(), torch.float32)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.double(), exact, dim=0) > 0.98


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_base_in_16_bits_keeps_its_dtype_beside_factors_in_float32(pico, architecture):
    """As PEFT loads adapters on such a base."""
    model, ids = pico.taia(architecture, dtype=torch.bfloat16), pico.ids()
    switch = model._taia_switch
    weights = torch.full((len(switch.sites),), 0.5, requires_grad=True)
    with switch.hold(learned(switch, weights.unbind())):
        logits = model(input_ids=ids).logits
    logits.float().logsumexp(-1).sum().backward()
    assert logits.dtype == torch.bfloat16
    assert weights.grad.isfinite().all()
    assert weights.grad.count_nonzero() > len(weights) // 2
    with torch.no_grad():
        wanted = model(input_ids=ids, inference_modules={"*": 0.5}).logits
    assert torch.allclose(logits, wanted, atol=0.1)


def test_a_gradient_is_summed_up_in_the_weights_dtype():
    """257 has more digits than bfloat16."""
    weight = LearnedWeight(torch.tensor(0.5, requires_grad=True))
    x = torch.ones(257, 1, dtype=torch.bfloat16)

    y = weight.between(torch.zeros_like(x), x)
    y.sum(dtype=torch.float32).backward()

    assert y.dtype == torch.bfloat16
    assert weight.values.grad == 257


def test_nothing_is_left_behind(pico, models):
    model, switch = models("lora", "llama")
    ids, before, status = pico.ids(), copy.deepcopy(model.state_dict()), model.status()
    expected = logits(model, ids)

    with switch.hold(learned(switch, values(switch).unbind())):
        losses(model, ids).sum().backward()
    with pytest.raises(IndexError), switch.hold(learned(switch, values(switch).unbind())):
        losses(model, ids + 1000)

    assert model.status() == status
    assert torch.equal(logits(model, ids), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_status_reads_the_values_of_now(pico, models):
    model, switch = models("lora", "llama")
    weights = values(switch, 2)
    with switch.hold(learned(switch, weights.unbind())):
        with torch.no_grad():
            weights[1, 0] = -1.25
        assert model.status().inference_modules[switch.sites[1].path] == -1.25
        assert "inference modules: " in model.status().to_text()
        assert model._taia_switch.asked().settings[1].entries[1].weight == weights[1, 1].item()


def test_parameters_that_are_trained_get_theirs_beside(pico):
    model, ids = pico.taia("llama", is_trainable=True).double(), pico.ids()
    switch = model._taia_switch
    with switch.hold(learned(switch, [torch.tensor(0.5)] * len(switch.sites))):
        losses(model, ids).sum().backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()

    losses(model, ids, inference_modules={"*": 0.5}).sum().backward()

    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_lora_with_a_bias(pico):
    config = pico.lora("gpt2", lora_bias=True, r=2, fan_in_fan_out=True)
    pico.adapter("gpt2", config, "learned-bias")
    model = pico.taia("gpt2", "learned-bias").double().requires_grad_(False)
    switch, ids = model._taia_switch, pico.ids(2, 4)
    half = {"*": 0.5}

    def loss(weights):
        with switch.hold(learned(switch, weights.unbind())):
            return losses(model, ids)

    with switch.hold(learned(switch, [torch.tensor(0.5)] * len(switch.sites))):
        torch.testing.assert_close(logits(model, ids), logits(model, ids, inference_modules=half))
    assert gradcheck(loss, values(switch), **DIFFERENCES, fast_mode=True)


def test_training_without_anything_to_learn_is_refused(pico):
    model = pico.taia("llama").train().requires_grad_(False)
    switch = model._taia_switch
    with (
        switch.hold(learned(switch, [torch.tensor(0.5)] * len(switch.sites))),
        pytest.raises(ConfigError, match="none of its parameters takes gradients"),
    ):
        model(input_ids=pico.ids())


class TestRefused:
    """What cannot be, and why; nothing is in force then."""

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            (torch.ones(2, 2), r"shape \(2, 2\) and dtype float32 came as the weight of 'model.layers.0"),
            (torch.ones(0), r"shape \(0,\)"),
            (torch.tensor(1), "dtype int64"),
            (torch.tensor(1.0, dtype=torch.bfloat16), "dtype bfloat16"),
            (float("nan"), "is nan"),
            (True, "is True"),
            ("1", "is '1'"),
        ],
    )
    def test_other_values(self, models, wrong, match):
        _, switch = models("lora", "llama")
        with pytest.raises(SettingError, match=match):
            learned(switch, [wrong, *[1.0] * (len(switch.sites) - 1)])

    def test_another_number_of_weights_or_of_rows(self, models):
        _, switch = models("lora", "llama")
        with pytest.raises(SettingError, match="3 weights came for 14 adapted modules"):
            learned(switch, [1.0] * 3)
        with pytest.raises(SettingError, match=r"Weights of 2 rows came for 'model.layers.0.* and of 3 for"):
            learned(switch, [torch.ones(2), torch.ones(3), *[1.0] * 12])

    def test_rows_of_experts(self, models):
        _, switch = models("lora", "qwen3_moe")
        weights = [0.5 if site.same_rows is None else torch.ones(2) for site in switch.sites]
        with pytest.raises(
            SettingError, match=r"experts.*must treat all rows alike: the experts' parameters are shared"
        ):
            learned(switch, weights)

    def test_updates_that_act_as_a_whole(self, pico):
        pico.adapter("llama", LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "learned-loha")
        switch = pico.taia("llama", "learned-loha")._taia_switch
        with pytest.raises(SettingError, match=r"q_proj', which takes only the numbers 0 or 1: loha"):
            learned(switch, [torch.tensor(1.0)] * 2)
        with pytest.raises(SettingError, match="takes only 0 or 1"):
            learned(switch, [0.5] * 2)
        assert learned(switch, [1.0, 0.0]).weights == (1.0, 0.0)

    def test_a_fused_model(self, pico):
        model = pico.taia("llama")
        switch = model._taia_switch
        with (
            model.fused("all"),
            pytest.raises(SettingError, match="the model is fused"),
            switch.hold(learned(switch, [torch.tensor(1.0)] * len(switch.sites))),
        ):
            pass
