"""The short way through adapted linear layers: taken in plain inference, left wherever somebody changed something."""

import copy
import functools
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.updates.peft.layers import SwitchedLinear
from taia_hub.updates.peft.shortcut import ShortBase, ShortLinear

DEFAULT = "default"


@pytest.fixture
def layer(pico):
    """A layer whose parts are kept already."""
    model = pico.taia("llama")
    model.inference_modules = "all"
    found = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        found(inputs())
    assert found.__dict__["_taia_shortcut"] is not None
    return found


def inputs(rows=1):
    return torch.randn(rows, 3, 16, generator=torch.Generator().manual_seed(0))


def usual(layer, *args, **keywords):
    return nn.Module.__call__(layer, *args, **keywords)


def halve(tensor):
    return nn.Parameter(tensor.detach() / 2, requires_grad=False)


class Half(nn.Module):
    def forward(self, tensor):
        return tensor / 2


def a_weight(layer):
    layer.lora_A[DEFAULT].weight = halve(layer.lora_A[DEFAULT].weight)


def b_weight(layer):
    layer.lora_B[DEFAULT].load_state_dict({"weight": layer.lora_B[DEFAULT].weight / 2}, assign=True)


def base_weight(layer):
    layer.base_layer._parameters["weight"] = halve(layer.base_layer.weight)


def base_bias(layer):
    layer.base_layer.bias = nn.Parameter(torch.ones(16), requires_grad=False)


def factor_module(layer):
    other = nn.Linear(16, 4, bias=False).requires_grad_(False)
    layer.lora_A[DEFAULT] = other


def base_module(layer):
    layer._modules["base_layer"] = nn.Linear(16, 16, bias=False).requires_grad_(False)


def base_module_of_another_kind(layer):
    layer.base_layer = nn.Sequential(layer.base_layer, Half())


def scaling(layer):
    layer.scaling[DEFAULT] /= 2


def scaling_as_a_tensor(layer):
    layer.scaling[DEFAULT] = torch.tensor(0.25)


def no_adapters(layer):
    layer.enable_adapters(False)


def no_active_adapter(layer):
    layer.set_adapter([])


def base_forward(layer):
    layer.base_layer.forward = functools.partial(lambda own, x: own(x) / 2, layer.base_layer.forward)


def own_forward(layer):
    layer.forward = functools.partial(lambda own, x: own(x) / 2, layer.forward)


def hook(which):
    def change(layer):
        which(layer).register_forward_hook(lambda module, args, output: output / 2)

    change.__name__ = f"hook_{which.__name__}"
    return change


def pre_hook(which):
    def change(layer):
        which(layer).register_forward_pre_hook(lambda module, args: (args[0] / 2,))

    change.__name__ = f"pre_hook_{which.__name__}"
    return change


def own(layer):
    return layer


def base(layer):
    return layer.base_layer


def first(layer):
    return layer.lora_A[DEFAULT]


def second(layer):
    return layer.lora_B[DEFAULT]


def parametrized_base(layer):
    parametrize.register_parametrization(layer.base_layer, "weight", Half())


def parametrized_factor(layer):
    parametrize.register_parametrization(layer.lora_B[DEFAULT], "weight", Half())


def pruned_base(layer):
    prune.l1_unstructured(layer.base_layer, "weight", amount=0.5)


def another_dtype(layer):
    layer.lora_A[DEFAULT].bfloat16()
    layer.lora_B[DEFAULT].bfloat16()


def moved(layer):
    layer.double().float()
    layer._apply(lambda tensor: tensor / 2)


def parametrized_bias(layer):
    layer.base_layer.bias = nn.Parameter(torch.ones(16), requires_grad=False)
    parametrize.register_parametrization(layer.base_layer, "bias", Half())


def bias_as_a_buffer(layer):
    del layer.base_layer.bias
    layer.base_layer.register_buffer("bias", torch.ones(16))


def bias_as_an_attribute(layer):
    del layer.base_layer.bias
    layer.base_layer.bias = torch.ones(16)


def hooks_thrown_away_before_a_hook(layer):
    for module in layer.modules():
        module._forward_hooks = OrderedDict()
    layer.base_layer.register_forward_hook(lambda module, args, output: output / 2)


def parameters_exchanged(layer):
    layer.base_layer._parameters = {"weight": halve(layer.base_layer.weight), "bias": None}


def factors_exchanged(layer):
    layer._modules["lora_A"] = nn.ModuleDict({DEFAULT: nn.Linear(16, 4, bias=False).requires_grad_(False)})


def active_adapters_changed_in_place(layer):
    layer.active_adapters.remove(DEFAULT)


class HalfLinear(nn.Linear):
    def forward(self, tensor):
        return super().forward(tensor) / 2


def another_class(layer):
    layer.base_layer.__class__ = HalfLinear


CHANGES = [
    *(parametrized_bias, bias_as_a_buffer, bias_as_an_attribute, hooks_thrown_away_before_a_hook, another_class),
    *(parameters_exchanged, factors_exchanged, active_adapters_changed_in_place),
    *(a_weight, b_weight, base_weight, base_bias, factor_module, base_module, base_module_of_another_kind),
    *(scaling, scaling_as_a_tensor, no_adapters, no_active_adapter, base_forward, own_forward),
    *(hook(which) for which in (own, base, first, second)),
    *(pre_hook(which) for which in (own, base, first, second)),
    *(parametrized_base, parametrized_factor, pruned_base, another_dtype, moved),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("setting", ["all", "none", {"attention": 0.5}])
@torch.no_grad()
def test_whatever_changes_in_a_layer_is_obeyed_at_once(layer, change, setting):
    layer._taia_switch.default = setting
    before = layer(inputs())
    assert torch.equal(before, usual(layer, inputs()))

    change(layer)

    after = layer(inputs())
    assert torch.equal(after, usual(layer, inputs()))
    touches_update = change.__name__.endswith(("first", "second")) or change in (
        *(a_weight, b_weight, factor_module, factors_exchanged, parametrized_factor, another_dtype),
        *(scaling, scaling_as_a_tensor, no_adapters, no_active_adapter, active_adapters_changed_in_place),
    )
    # A hook of a factor that wants it called is called only where its update acts whole.
    if setting == "none" or (change.__name__.endswith(("first", "second")) and setting != "all"):
        assert torch.equal(after, before) == touches_update
    else:
        assert not torch.equal(after, before)
    assert torch.equal(layer(inputs()), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_short_way_is_taken_where_nothing_is_out_of_the_ordinary(pico, monkeypatch, dtype):
    model, ids = pico.taia("llama", dtype=dtype), pico.ids(4)
    assert model.model.layers[0].self_attn.q_proj.lora_A[DEFAULT].weight.dtype == torch.float32
    modes = ["none", "attention", "ffn", "all"]
    expected = {mode: model(input_ids=ids, inference_modules=mode).logits for mode in modes}
    rows = model(input_ids=ids, inference_modules=modes).logits

    def never(*args, **keywords):
        raise AssertionError("the usual way")

    monkeypatch.setattr(SwitchedLinear, "forward", never)
    for mode in modes:
        assert torch.equal(model(input_ids=ids, inference_modules=mode).logits, expected[mode])
    assert torch.equal(model(input_ids=ids, inference_modules=modes).logits, rows)
    with torch.enable_grad(), pytest.raises(AssertionError, match="the usual way"):
        model(input_ids=ids)
    layer = model.model.layers[0].self_attn.q_proj
    with pytest.raises(AssertionError, match="the usual way"):
        layer(x=inputs().to(dtype))
    with pytest.raises(AssertionError, match="the usual way"):
        layer.train()(inputs().to(dtype))


@torch.no_grad()
def test_a_fused_layer_goes_the_short_way_until_it_is_hooked(pico):
    model, ids = pico.taia("llama"), pico.ids()
    expected = model(input_ids=ids, inference_modules="none").logits
    with model.fused("none"):
        layer, calls = model.model.layers[0].mlp.up_proj, []
        assert torch.equal(model(input_ids=ids).logits, expected)
        assert isinstance(layer, ShortBase)
        assert layer.__dict__["_taia_shortcut"] is not None
        handle = layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
        own = layer.register_forward_hook(lambda *_: calls.append(2))
        assert torch.equal(model(input_ids=ids).logits, expected)
        assert calls == [1, 2]
        handle.remove()
        own.remove()
        layer.base_layer.weight = halve(layer.base_layer.weight)
        assert not torch.equal(model(input_ids=ids).logits, expected)


@torch.no_grad()
def test_a_hook_on_every_module_sees_every_module(layer):
    seen = []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        layer(inputs())
    finally:
        handle.remove()
    assert {layer, layer.base_layer} <= set(seen)


@torch.no_grad()
def test_a_merged_layer_is_refused(layer):
    layer.merge()
    with pytest.raises(UnsupportedUpdateError, match="is merged into its base weight"):
        layer(inputs())
    layer.unmerge()
    assert torch.equal(layer(inputs()), usual(layer, inputs()))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
@torch.no_grad()
def test_a_copy_has_parts_of_its_own(layer, way):
    assert layer.__dict__["_taia_shortcut"] is not None
    twin = way(layer)
    assert isinstance(twin, ShortLinear)
    assert twin.__dict__["_taia_shortcut"] is None
    before = layer(inputs())
    assert torch.equal(twin(inputs()), before)
    a_weight(twin)
    assert not torch.equal(twin(inputs()), before)
    assert torch.equal(layer(inputs()), before)


def test_a_copy_of_a_compiled_layer_is_not_compiled(layer):
    layer.compile(backend="eager")
    assert "_compiled_call_impl" not in copy.deepcopy(layer).__dict__


def test_functional_calls_use_the_tensors_that_they_are_given(pico):
    model, ids = pico.taia("llama"), pico.ids()
    with torch.no_grad():
        expected = model(input_ids=ids, inference_modules="none").logits
        zeros = {name: torch.zeros_like(one) for name, one in model.named_parameters() if "lora_B" in name}
        keywords = {"input_ids": ids, "inference_modules": "all"}
        assert not torch.equal(model(**keywords).logits, expected)
        assert torch.equal(torch.func.functional_call(model, zeros, (), keywords).logits, expected)


@torch.no_grad()
def test_a_replica_of_data_parallel_uses_its_own_tensors(layer):
    replica = layer._replicate_for_data_parallel()
    replica._modules["base_layer"] = nn.Linear(16, 16, bias=False)
    assert torch.equal(replica(inputs()), usual(replica, inputs()))
    assert not torch.equal(replica(inputs()), layer(inputs()))


@torch.no_grad()
def test_tracing_goes_the_usual_way(layer, monkeypatch):
    ran = []
    forward = SwitchedLinear.forward
    monkeypatch.setattr(SwitchedLinear, "forward", lambda self, *args: ran.append(1) or forward(self, *args))
    layer(inputs())
    assert not ran
    traced = torch.jit.trace(lambda x: layer(x), inputs(), check_trace=False)
    assert ran
    assert torch.equal(traced(inputs()), layer(inputs()))


@torch.no_grad()
def test_a_patched_linear_layer_is_obeyed(layer, monkeypatch):
    before, forward = layer(inputs()), nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x) / 2)
    assert torch.equal(layer(inputs()), usual(layer, inputs()))
    assert not torch.equal(layer(inputs()), before)


@torch.no_grad()
def test_what_a_thread_finds_while_another_changes_the_layer_is_not_kept(layer, monkeypatch):
    before, find = layer(inputs()), type(layer)._find
    layer.scaling = dict(layer.scaling)  # so that the parts are looked for again

    def late(self):
        found = find(self)
        self._disable_adapters = True  # as another thread would
        return found

    monkeypatch.setattr(type(layer), "_find", late)
    layer(inputs())
    monkeypatch.undo()
    assert torch.equal(layer(inputs()), usual(layer, inputs()))
    assert not torch.equal(layer(inputs()), before)
