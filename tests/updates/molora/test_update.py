"""MoLoRA: the layer against plain loops, the switch, files, and the authors' checkpoints."""

import contextlib
import copy
import json
import math
import pickle
import re
import shutil
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting import export_adapter
from taia_hub.repository.creating import create_repository
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.switch import Switch
from taia_hub.updates.molora.authors import convert_authors
from taia_hub.updates.molora.config import MOLORA_CONFIG, MOLORA_WEIGHTS, MoLoraSettings
from taia_hub.updates.molora.layers import MoLoraLinear
from taia_hub.updates.molora.routing import add_experts, add_experts_in_place, group_tokens
from taia_hub.updates.molora.update import MoLoraUpdate, add_molora, attach_molora, balance_loss, save_molora
from taia_hub.updates.options import AttachOptions

_SMALL = MoLoraSettings(rank={"attention": 3, "ffn": 4}, alpha={"attention": 6, "ffn": 10}, dropout=0.0)


def _randomised(model: PeftModel, seed: int = 1) -> PeftModel:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _mixture(pico: Any, name: str = "llama", settings: MoLoraSettings = _SMALL, **keywords: Any) -> PeftModel:
    """A mixture with random weights, the same ones for the same arguments."""
    base = pico.plain(name, **keywords)
    torch.manual_seed(1)
    return _randomised(add_molora(base, settings)).eval()


@pytest.fixture(scope="module")
def saved(pico: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes and saves a random mixture on an architecture, once each."""
    made: dict[Any, Path] = {}

    def make(name: str = "llama", **options: Any) -> Path:
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("molora") / "saved"
            settings = MoLoraSettings(**{**vars(_SMALL), **options})
            save_molora(_mixture(pico, name, settings), made[key])
        return made[key]

    return make


def _attached(pico: Any, folder: Path, name: str = "llama", mode: Any = "all", **options: Any) -> Any:
    base = pico.plain(name, **options.pop("base", {}))
    placed = find_sublayers(base)
    update, switch = attach_molora(base, folder, AttachOptions(placed.roles, inference_modules=mode, **options))
    return base.eval(), update, switch


def _linear(top_k: int = 2, experts: int = 4, **options: Any) -> MoLoraLinear:
    """One layer of its own, with random weights, inside PEFT's wrapper."""
    torch.manual_seed(3)
    model = nn.Sequential()
    model.mlp = nn.Linear(6, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = add_molora(
            model,
            MoLoraSettings(experts=experts, top_k=top_k, rank=3, alpha=5, **{"dropout": 0.0, **options}),
            roles={"mlp": "ffn"},
            targets=["mlp"],
        )
    layer = _randomised(peft_model).get_submodule("base_model.model.mlp")
    assert isinstance(layer, MoLoraLinear)
    return layer


def _by_hand(layer: MoLoraLinear, x: torch.Tensor) -> torch.Tensor:
    """The definition, token by token and expert by expert."""
    a, b, router = (part["default"] for part in (layer.lora_A, layer.lora_B, layer.lora_router))
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        y = layer.base_layer.weight @ token + layer.base_layer.bias
        logits = [router.weight[i] @ token + router.bias[i] for i in range(len(a.weight))]
        chosen = sorted(range(len(logits)), key=lambda i: -logits[i].item())[: layer.top_k["default"]]
        total = sum(math.exp(logits[i].item()) for i in chosen)
        for i in chosen:
            y = y + math.exp(logits[i].item()) / total * (5 / 3) * (b.weight[i] @ (a.weight[i] @ token))
        rows.append(y)
    return torch.stack(rows).view(*x.shape[:-1], -1)


class TestLayer:
    @pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (4, 4), (9, 3), (40, 2)])
    def test_output_is_the_definition(self, experts: int, top_k: int) -> None:
        layer = _linear(top_k, experts)
        x = torch.randn(2, 7, 6)
        torch.testing.assert_close(layer(x), _by_hand(layer, x))

    @pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (9, 3)])
    def test_gradients_are_those_of_a_dense_sum_over_all_experts(self, experts: int, top_k: int) -> None:
        layer = _linear(top_k, experts).double()
        x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
        a, b, router = (part["default"] for part in (layer.lora_A, layer.lora_B, layer.lora_router))
        parameters = [x, a.weight, b.weight, router.weight, router.bias]
        grad = torch.randn(11, 5, dtype=torch.float64)

        logits = router(x)
        kept = torch.full_like(logits, -torch.inf).scatter(1, logits.topk(top_k).indices, 0.0)
        every = torch.einsum("eor,erd,td->teo", b.weight, a.weight, x)
        dense = layer.base_layer(x) + ((logits + kept).softmax(1).unsqueeze(2) * (5 / 3) * every).sum(1)
        expected = torch.autograd.grad(dense, parameters, grad)

        for found, one in zip(torch.autograd.grad(layer(x), parameters, grad), expected, strict=True):
            torch.testing.assert_close(found, one, atol=1e-6, rtol=1e-6)  # the gates are float32

    def test_the_router_learns_with_two_experts_a_token_and_not_with_one(self) -> None:
        for top_k, learns in ((1, False), (2, True)):
            layer = _linear(top_k)
            layer(torch.randn(20, 6)).square().sum().backward()
            router = layer.lora_router["default"]
            assert bool(router.weight.grad.abs().sum() > 0) is learns
            assert bool(router.bias.grad.abs().sum() > 0) is learns

    def test_experts_that_no_token_chose_get_zero_gradients_so_that_ddp_need_not_look_for_them(self) -> None:
        layer = _linear()
        layer(torch.randn(1, 6)).sum().backward()
        grads = layer.lora_B["default"].weight.grad
        assert [bool(one.any()) for one in grads].count(True) == 2

    @pytest.mark.parametrize(("forward", "backward"), [(False, True), (True, True), (True, False)])
    def test_backward_may_run_under_autocast(self, forward: bool, backward: bool) -> None:
        layer, x = _linear(), torch.randn(3, 6, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = layer(x).float().square().sum()
        parameters = [x, *(one for one in layer.parameters() if one.requires_grad)]
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            found = torch.autograd.grad(loss, parameters)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)

    def test_only_the_chosen_experts_are_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = _linear(2, 4)
        with torch.no_grad():
            layer.lora_router["default"].bias.copy_(torch.tensor([100.0, 0, 0, 90.0]))
            layer.lora_A["default"].weight[1:3] = torch.nan  # would show if it took part, even times zero
        assert layer(torch.randn(9, 6)).isfinite().all()

    def test_memory_kept_for_the_backward_pass_does_not_grow_with_the_experts(self) -> None:
        kept = []
        for experts in (2, 8, 32):
            layer, x, storages = _linear(2, experts), torch.randn(200, 6, requires_grad=True), {}
            own = {one.untyped_storage().data_ptr() for one in layer.parameters()}

            def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                layer(x)
            kept.append(sum(size for pointer, size in storages.items() if pointer not in own))
        assert kept[2] - kept[0] <= 200 * 30 * 4 + 2000  # the router's logits alone

    def test_top_k_1_warns(self, pico: Any) -> None:
        with pytest.warns(UserWarning, match="router gets no gradient"):
            add_molora(pico.plain("llama"), MoLoraSettings(top_k=1))

    def test_start_is_the_base_model_and_its_bytes_are_kept(self, pico: Any) -> None:
        base, ids = pico.plain("llama"), pico.ids()
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        logits = base(ids).logits
        model = add_molora(base).eval()
        assert torch.equal(model(ids).logits, logits)  # every second factor is zero
        model.train()
        model(ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            key = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert "lora_" in name or torch.equal(parameter, before[key])

    def test_experts_are_drawn_as_the_paper_draws_them(self, pico: Any) -> None:
        layer = add_molora(pico.plain("llama")).get_submodule("base_model.model.model.layers.0.mlp.down_proj")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert (a.shape, b.shape) == ((4, 16, 24), (4, 16, 16))
        assert not b.any()
        assert 0.9 / math.sqrt(24) < a.abs().max() <= 1 / math.sqrt(24)  # kaiming_uniform with a = sqrt 5
        assert not torch.equal(a[0], a[1])
        assert layer.lora_router["default"].bias is not None

    def test_experts_are_float32_on_a_16_bit_base_and_the_output_keeps_its_dtype(self, pico: Any) -> None:
        model = _mixture(pico, dtype=torch.bfloat16)
        layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
        assert {one.dtype for name, one in layer.named_parameters() if "lora_" in name} == {torch.float32}
        x = torch.randn(3, 16, dtype=torch.bfloat16)
        with torch.no_grad():
            wide = layer.base_layer(x).float() + layer.add_update(torch.zeros(3, 24), x, "default", 1.0)
            assert torch.equal(layer(x), wide.bfloat16())
            assert torch.equal(layer.add_update(layer.base_layer(x), x, "default", 1.0, in_place=True), layer(x))

    def test_dropout_acts_on_the_experts_in_training_only_and_never_on_the_router(self) -> None:
        layer = _linear(dropout=0.5)
        x = torch.randn(50, 6)
        layer.train()
        first = layer(x)
        assert not torch.equal(first, layer(x))
        router = layer.lora_router["default"]
        assert torch.equal(layer._choose(x, "default")[0], router(x).topk(2).indices.sort().values)
        torch.testing.assert_close(layer.eval()(x), _by_hand(layer, x))

    def test_in_place_and_functional_sums_have_the_same_bits(self) -> None:
        torch.manual_seed(0)
        for experts, k in ((4, 2), (9, 3)):
            y, x = torch.randn(13, 5), torch.randn(13, 6)
            a, b = torch.randn(experts, 2, 6), torch.randn(experts, 5, 2)
            chosen = torch.rand(13, experts).topk(k).indices.sort().values
            arguments = x, a, b, torch.rand(13, k), group_tokens(chosen, experts)
            result = add_experts(y, *arguments)
            add_experts_in_place(y, *arguments)
            assert torch.equal(result, y)

    def test_merging_is_refused(self, pico: Any) -> None:
        with pytest.raises(UnsupportedUpdateError, match="cannot be merged"):
            add_molora(pico.plain("llama")).merge_and_unload()

    def test_peft_switches_it_too(self, pico: Any) -> None:
        model, ids = _mixture(pico), pico.ids(3)
        every = model(ids).logits
        with model.disable_adapter():
            base = model(ids).logits
        assert torch.equal(base, pico.plain("llama")(ids).logits)
        mixed = model(ids, adapter_names=["default", "__base__", "default"]).logits
        torch.testing.assert_close(mixed, torch.stack([every[0], base[1], every[2]]))


class TestBalanceLoss:
    def test_value_by_hand(self) -> None:
        layer, x = _linear(balance_loss=0.5), torch.randn(9, 6)
        layer.train()
        layer(x)
        router, share, mean = layer.lora_router["default"], [0.0] * 4, [0.0] * 4
        for token in x:
            logits = [(router.weight[i] @ token + router.bias[i]).item() for i in range(4)]
            total = sum(math.exp(one) for one in logits)
            for i in sorted(range(4), key=lambda i: -logits[i])[:2]:
                share[i] += 1 / 18
            for i in range(4):
                mean[i] += math.exp(logits[i]) / total / 9
        loss = balance_loss(layer)
        assert loss.item() == pytest.approx(4 * sum(f * p for f, p in zip(share, mean, strict=True)), rel=1e-5)
        loss.backward()
        assert router.weight.grad.abs().sum() > 0
        assert layer.lora_A["default"].weight.grad is None

    def test_equal_use_gives_one_and_top_k_1_learns_by_it(self) -> None:
        layer = _linear(1, balance_loss=0.1)
        layer.train()
        with torch.no_grad():
            layer.lora_router["default"].weight.zero_()
            layer.lora_router["default"].bias.zero_()
        layer(torch.randn(8, 6))
        assert balance_loss(layer).item() == pytest.approx(1.0)

    def test_off_by_default_and_in_evaluation(self, pico: Any) -> None:
        model = add_molora(pico.plain("llama")).train()
        model(pico.ids())
        assert balance_loss(model).item() == 0
        model = add_molora(pico.plain("llama"), MoLoraSettings(balance_loss=0.1)).eval()
        model(pico.ids())
        assert balance_loss(model).item() == 0

    def test_is_the_mean_over_routers_and_survives_checkpointing(self, pico: Any) -> None:
        model, ids = _mixture(pico, settings=MoLoraSettings(balance_loss=0.1, dropout=0)), pico.ids()
        model.train()
        grads = []
        for reentrant in (None, False, True):
            if reentrant is not None:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            model.zero_grad()
            loss = model(ids, labels=ids).loss
            if reentrant:
                with pytest.raises(ConfigError, match="use_reentrant=False"):
                    balance_loss(model)
                continue
            (loss + balance_loss(model)).backward()
            grads.append([one.grad.clone() for name, one in model.named_parameters() if "lora_" in name])
            with pytest.raises(ConfigError):
                balance_loss(model)  # taken once, and the recomputation put nothing back
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)
        copy.deepcopy(model)


class TestSwitch:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
    def test_modes_are_exact(self, pico: Any, saved: Any, name: str, tmp_path: Path) -> None:
        folder, ids = saved(name), pico.ids(3)
        base, _, switch = _attached(pico, folder, name)
        reference = _mixture(pico, name)
        export_adapter(folder, tmp_path / "attention")
        plain = PeftModel.from_pretrained(pico.plain(name), str(tmp_path / "attention")).eval()
        expected = {"all": reference, "none": pico.plain(name), "attention": plain}
        for no_grad in (contextlib.nullcontext, torch.no_grad):
            with no_grad():
                for mode, model in expected.items():
                    with switch.hold(switch.resolve(mode)):
                        assert torch.equal(base(ids).logits, model(ids).logits), mode

    def test_ffn_alone(self, pico: Any, saved: Any) -> None:
        base, _, _ = _attached(pico, saved(), mode="ffn")
        reference = _mixture(pico)
        for name, module in reference.named_modules():
            if "self_attn" in name and hasattr(module, "lora_B"):
                nn.init.zeros_(module.lora_B["default"].weight)
        torch.testing.assert_close(base(pico.ids()).logits, reference(pico.ids()).logits)

    def test_rows_equal_their_single_runs_and_masked_rows_are_not_computed(self, pico: Any, saved: Any) -> None:
        for name in ("llama", "opt"):
            base, _, switch = _attached(pico, saved(name), name)
            ids, modes = pico.ids(5), ["all", "none", "ffn", {"ffn": 0.5, "attention": 1}, "attention"]
            with torch.no_grad():
                with switch.hold(switch.resolve_rows(modes, 5)):
                    mixed = base(ids).logits
                for row, mode in enumerate(modes):
                    with switch.hold(switch.resolve(mode)):
                        torch.testing.assert_close(mixed[row], base(ids[row : row + 1]).logits[0], msg=f"{name} {mode}")

    def test_masked_experts_are_not_computed(self, pico: Any, saved: Any) -> None:
        base, _, switch = _attached(pico, saved())
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if ".mlp." in name and "lora_" in name:
                    parameter.fill_(torch.nan)
        with switch.hold(switch.resolve("attention")):
            assert base(pico.ids()).logits.isfinite().all()
        with switch.hold(switch.resolve_rows(["attention", "all"], 2)):
            logits = base(pico.ids(2)).logits
            assert logits[0].isfinite().all()
            assert logits[1].isnan().all()

    def test_weights_scale_the_update(self) -> None:
        layer, x = _linear(), torch.randn(2, 7, 6)
        y = layer.base_layer(x)
        full = layer(x) - y
        torch.testing.assert_close(layer.add_update(y, x, "default", 0.25) - y, full / 4)

    def test_gradients_flow_by_row(self, pico: Any, saved: Any) -> None:
        base, _, switch = _attached(pico, saved(), is_trainable=True)
        ids, grads = pico.ids(2), []
        for modes, rows in ((["all", "none"], ids), (["all"], ids[:1])):
            base.zero_grad()
            with switch.hold(switch.resolve_rows(modes, len(rows))):
                base(rows).logits[0].square().mean().backward()
            grads.append({name: one.grad.clone() for name, one in base.named_parameters() if "lora_" in name})
        for name, one in grads[0].items():
            torch.testing.assert_close(one, grads[1][name], msg=name)

    def test_threads_see_their_own_setting(self, pico: Any, saved: Any) -> None:
        base, _, switch = _attached(pico, saved())
        ids, wrong = pico.ids(2), []
        expected = {}
        for mode in ("all", "none", "ffn"):
            with switch.hold(switch.resolve(mode)), torch.no_grad():
                expected[mode] = base(ids).logits

        def run(mode: str) -> None:
            with switch.hold(switch.resolve(mode)), torch.no_grad():
                for _ in range(10):
                    if not torch.equal(base(ids).logits, expected[mode]):
                        wrong.append(mode)

        threads = [threading.Thread(target=run, args=(mode,)) for mode in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_beams_with_rows(self, pico: Any, saved: Any) -> None:
        model = _taia(pico, saved())
        ids, modes = pico.ids(2), ["none", "all"]
        options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
        mixed = model.generate(ids, inference_modules=modes, **options)
        for row, mode in enumerate(modes):
            single = model.generate(ids[row : row + 1], inference_modules=mode, **options)
            assert torch.equal(mixed[row, : single.shape[1]], single[0])

    def test_gradient_checkpointing_recomputes_under_the_setting(self, pico: Any, saved: Any) -> None:
        ids, grads = pico.ids(), []
        for checkpointing in (False, True):
            model = _taia(pico, saved(), is_trainable=True).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            with model.using({"ffn": 0.5}):
                loss = model(ids, labels=ids).loss
            loss.backward()
            grads.append([one.grad for name, one in model.named_parameters() if "lora_" in name and ".mlp." in name])
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)

    def test_autocast_equals_the_unswitched_model(self, pico: Any, saved: Any) -> None:
        base, _, _ = _attached(pico, saved())
        reference = _mixture(pico)
        ids = pico.ids()
        with torch.autocast("cpu", torch.bfloat16):
            logits = base(ids).logits
            assert torch.equal(logits, reference(ids).logits)
            reference(ids, labels=ids).loss.backward()
        assert all(one.grad.isfinite().all() for one in reference.parameters() if one.requires_grad)

    def test_16_bit_base(self, pico: Any, saved: Any) -> None:
        half = {"base": {"dtype": torch.bfloat16}}
        for autocast in (True, False):
            base, update, _ = _attached(pico, saved(), autocast_adapter_dtype=autocast, **half)
            assert {one.dtype for one in update.parameters().values()} == {
                torch.float32 if autocast else torch.bfloat16
            }
            assert base(pico.ids()).logits.dtype is torch.bfloat16
            assert update.is_unchanged()

    def test_compiled_code_is_right(self, pico: Any, saved: Any) -> None:
        base, _, switch = _attached(pico, saved())
        layer = base.model.layers[0].mlp
        compiled, x = torch.compile(layer, backend="eager"), torch.randn(2, 3, 16)
        for mode in ("all", "none", {"ffn": 0.5}):
            with switch.hold(switch.resolve(mode)), torch.no_grad():
                assert torch.equal(compiled(x), layer(x))

    def test_copies_and_pickles(self, pico: Any, saved: Any) -> None:
        base, _, _ = _attached(pico, saved())
        for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
            assert torch.equal(other(pico.ids()).logits, base(pico.ids()).logits)

    def test_status(self, pico: Any, saved: Any) -> None:
        _, update, switch = _attached(pico, saved(), mode="attention")
        status = switch.status()
        assert (status.roles["attention"].acting, status.roles["ffn"].masked) == (8, 6)
        count = sum(tensor.numel() for tensor in update.parameters().values())
        assert sum(role.parameters for role in status.roles.values()) == count
        assert status.methods == {"lora.Linear": 8, "MoLoraLinear": 6}


def _taia(pico: Any, folder: Path, **options: Any) -> Any:
    return TAIAForCausalLM.from_adapter(pico.base("llama"), folder, inference_modules="all", **options).eval()


class TestFiles:
    def test_saving_and_loading_keeps_every_bit(self, pico: Any, saved: Any, tmp_path: Path) -> None:
        base, update, _ = _attached(pico, saved(), is_trainable=True)
        assert isinstance(update, MoLoraUpdate)
        expected = _mixture(pico).state_dict()
        for name, tensor in update.parameters().items():
            assert torch.equal(
                tensor, expected[name.replace(".weight", ".default.weight").replace(".bias", ".default.bias")]
            )
        update.save(tmp_path / "same")
        for name in (MOLORA_CONFIG, MOLORA_WEIGHTS):
            assert (tmp_path / "same" / name).read_bytes() == (saved() / name).read_bytes()
        with torch.no_grad():
            update.parameters()["base_model.model.model.layers.1.mlp.up_proj.lora_router.bias"].add_(1)
        assert not update.is_unchanged()
        update.save(tmp_path / "changed")
        again, _, _ = _attached(pico, tmp_path / "changed")
        assert torch.equal(again(pico.ids()).logits, base(pico.ids()).logits)
        assert (tmp_path / "changed" / MOLORA_CONFIG).read_bytes() == (saved() / MOLORA_CONFIG).read_bytes()

    @pytest.mark.parametrize("path", ["weight_proj", "bias_mlp", "default", "lora_net"])
    def test_paths_that_look_like_names_of_tensors(self, path: str, tmp_path: Path) -> None:
        """PEFT renames keys by their text; nothing of the update may be lost."""
        roles = {"attn": "attention", path: "ffn"}
        base = nn.Sequential(OrderedDict({name: nn.Linear(8, 8) for name in roles}))
        trained = _randomised(add_molora(copy.deepcopy(base), MoLoraSettings(rank=2), roles, [*roles])).eval()
        save_molora(trained, tmp_path)
        update, _ = attach_molora(base, tmp_path, AttachOptions(roles, inference_modules="all"))
        assert update.is_unchanged()
        x = torch.randn(3, 8)
        assert torch.equal(update.head_model.eval()(x), trained.base_model.model(x))

    def test_state_dict_of_a_trainer(self, pico: Any, saved: Any, tmp_path: Path) -> None:
        base, update, _ = _attached(pico, saved())
        state = {key: value + 1 if "lora_" in key else value for key, value in base.state_dict().items()}
        update.save(tmp_path, state)
        before, after = load_file(saved() / MOLORA_WEIGHTS), load_file(tmp_path / MOLORA_WEIGHTS)
        assert all(torch.equal(after[key], before[key] + 1) for key in before)
        with pytest.raises(UpdateMismatchError, match="0 of the update's"):
            update.save(tmp_path, {"nothing": torch.ones(1)})

    def test_config_file(self, pico: Any, saved: Any) -> None:
        values = json.loads((saved() / MOLORA_CONFIG).read_text())
        assert values["version"] == 1
        assert values["base_model_name_or_path"] == str(pico.base("llama"))
        assert (values["experts"], values["top_k"], values["rank"]) == (4, 2, {"attention": 3, "ffn": 4})
        assert values["ffn"][:2] == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
        model = add_molora(pico.plain("llama"), revision="a" * 40)
        assert model.peft_config["default"].revision == "a" * 40

    def test_plain_peft_refuses_the_folder(self, pico: Any, saved: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="adapter_config"):
            PeftModel.from_pretrained(pico.plain("llama"), str(saved()))
        # A checkpoint of Trainer is written by PEFT itself.
        _randomised(add_molora(pico.plain("llama"))).save_pretrained(str(tmp_path))
        with pytest.raises(KeyError, match="MOLORA"):
            PeftModel.from_pretrained(pico.plain("llama"), str(tmp_path))
        with pytest.raises(KeyError, match="MOLORA"):
            PeftConfig.from_pretrained(str(tmp_path))

    def test_a_trainer_resumes_from_its_checkpoint(self, pico: Any, tmp_path: Path) -> None:
        trained = _randomised(add_molora(pico.plain("llama")))
        trained.save_pretrained(str(tmp_path))
        fresh = add_molora(pico.plain("llama"))
        fresh.load_adapter(str(tmp_path), "default", is_trainable=True)  # what Trainer calls
        for (name, one), other in zip(fresh.named_parameters(), trained.parameters(), strict=True):
            assert torch.equal(one, other), name
            assert one.requires_grad == other.requires_grad

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (
                lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_router.bias"),
                "1 missing: .*lora_router",
            ),
            (lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(16)}), "1 of no adapted module"),
            (
                lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(3, 4, 16)}),
                r"shape \(3, 4, 16\) instead of \(4, 4, 16\)",
            ),
            (
                lambda t: t.update(
                    {"base_model.model.model.layers.0.mlp.up_proj.lora_router.bias": torch.ones(4, dtype=torch.int64)}
                ),
                "holds torch.int64",
            ),
        ],
    )
    def test_tensors_must_fit(self, pico: Any, saved: Any, tmp_path: Path, change: Any, match: str) -> None:
        shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
        tensors = load_file(saved() / MOLORA_WEIGHTS)
        change(tensors)
        save_file(tensors, tmp_path / MOLORA_WEIGHTS)
        with pytest.raises(UpdateMismatchError, match=match):
            _attached(pico, tmp_path)

    @pytest.mark.parametrize(
        ("key", "value", "error", "match"),
        [
            ("experts", "four", ConfigError, "experts is 'four'"),
            ("experts", 3, UpdateMismatchError, "shape"),
            ("experts", True, ConfigError, "experts is True"),
            ("top_k", 5, ConfigError, "top_k is 5, but there are 4"),
            ("rank", 0, ConfigError, "rank is 0"),
            ("rank", {"ffn": 4}, ConfigError, "rank is"),
            ("rank", {"attention": 3, "ffn": 5}, UpdateMismatchError, "shape"),
            ("dropout", 1.0, ConfigError, "dropout is 1.0"),
            ("balance_loss", float("nan"), ConfigError, "balance_loss is nan"),
            ("rslora", "no", ConfigError, "rslora is 'no'"),
            ("version", 2, ConfigError, "version 2"),
            ("method", "lora", ConfigError, "no MoLoRA update"),
            ("ffn", "up_proj", ConfigError, "a list of module paths"),
            ("ffn", [], ConfigError, "no FFN linear"),
            ("ffn", ["model.layers.7.mlp.up_proj"], UpdateMismatchError, "LlamaForCausalLM lacks: 'model.layers.7"),
            ("ffn", ["model.norm"], UnsupportedUpdateError, "no plain linear layers"),
            ("attention", ["model.layers.0.mlp.up_proj"], ConfigError, "twice"),
            ("base_model_name_or_path", 1, ConfigError, "base_model_name_or_path"),
            ("expertes", 4, ConfigError, "unknown key 'expertes'.*Did you mean 'experts'"),
        ],
    )
    def test_damaged_configs(
        self, pico: Any, saved: Any, tmp_path: Path, key: str, value: Any, error: type, match: str
    ) -> None:
        shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
        values = json.loads((saved() / MOLORA_CONFIG).read_text())
        (tmp_path / MOLORA_CONFIG).write_text(json.dumps({**values, key: value}))
        with pytest.raises(error, match=match) as caught:
            _attached(pico, tmp_path)
        assert caught.value.hint

    def test_damaged_files(self, pico: Any, saved: Any, tmp_path: Path) -> None:
        shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
        (tmp_path / MOLORA_WEIGHTS).write_bytes((saved() / MOLORA_WEIGHTS).read_bytes()[:-5])
        with pytest.raises(RepositoryError, match="truncated"):
            _attached(pico, tmp_path)
        (tmp_path / MOLORA_WEIGHTS).unlink()
        with pytest.raises(RepositoryError, match="has no molora_model"):
            _attached(pico, tmp_path)
        (tmp_path / MOLORA_CONFIG).write_text("{")
        with pytest.raises(ConfigError, match="no JSON"):
            _attached(pico, tmp_path)

    def test_a_skeleton_is_checked_and_keeps_the_bytes(self, pico: Any, saved: Any, tmp_path: Path) -> None:
        with torch.device("meta"):
            skeleton = LlamaForCausalLM(LlamaConfig.from_pretrained(pico.base("llama")))
        update, _ = attach_molora(skeleton, saved(), AttachOptions(find_sublayers(skeleton).roles))
        update.save(tmp_path)
        assert (tmp_path / MOLORA_WEIGHTS).read_bytes() == (saved() / MOLORA_WEIGHTS).read_bytes()


class TestTargets:
    def test_moe_bases(self, pico: Any) -> None:
        with pytest.raises(UnsupportedUpdateError, match="no dense FFN linear"):
            add_molora(pico.plain("mixtral"))
        model = add_molora(pico.plain("qwen2_moe"), MoLoraSettings(rank=4))
        made = [name for name, module in model.named_modules() if isinstance(module, MoLoraLinear)]
        assert len(made) == 6
        assert all(re.search(r"shared_expert\.(gate|up|down)_proj$", name) for name in made)

    def test_a_routed_expert_is_refused_by_name(self) -> None:
        model = nn.Sequential()
        model.experts = nn.ModuleList([nn.Linear(4, 4)])
        with pytest.raises(UnsupportedUpdateError, match="routed expert"):
            add_molora(model, roles={"experts.0": "ffn"}, targets=["experts.0"])

    def test_chosen_targets(self, pico: Any) -> None:
        paths = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
        model = add_molora(pico.plain("llama"), targets=paths)
        made = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
        assert made == set(paths)
        with pytest.raises(ConfigError, match=r"'model.layers.1.mlp.upproj' is no linear.*Did you mean"):
            add_molora(pico.plain("llama"), targets=["model.layers.1.mlp.upproj"])
        with pytest.raises(ConfigError, match="No FFN linear"):
            add_molora(pico.plain("llama"), targets=paths[1:])

    def test_another_adapter_on_top_is_refused(self, pico: Any) -> None:
        with pytest.raises(UnsupportedUpdateError, match="is no MoLoRA update"):
            add_molora(pico.plain("llama")).add_adapter("other", LoraConfig(target_modules=["up_proj"]))
        with pytest.raises(ConfigError, match="holds no MoLoRA"):
            save_molora(get_peft_model(pico.plain("llama"), LoraConfig(target_modules=["up_proj"])), "/nowhere")


@pytest.fixture
def authors(pico: Any, tmp_path: Path) -> Path:
    """A checkpoint in the naming of the authors' code, with random tensors."""
    folder = tmp_path / "run"
    attention = r".*\.self_attn\.[qkvo]_proj"
    lora = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.05, target_modules=attention, task_type="CAUSAL_LM")
    _randomised(get_peft_model(pico.plain("llama"), lora)).save_pretrained(str(folder))
    torch.manual_seed(5)
    tensors = {}
    for name, module in pico.plain("llama").named_modules():
        if ".mlp." in name and isinstance(module, nn.Linear):
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.switch.weight"] = torch.randn(5, module.in_features)
            tensors[f"{prefix}.switch.bias"] = torch.randn(5)
            for i in range(5):  # four experts, and an identity expert that is never chosen
                a, b = torch.randn(4, module.in_features), torch.randn(module.out_features, 4)
                tensors[f"{prefix}.experts.{i}.lora_A_{i}.weight"] = a * (i < 4) / 4
                tensors[f"{prefix}.experts.{i}.lora_B_{i}.weight"] = b * (i < 4) / 4
    torch.save(tensors, folder / "non_lora_trainables.bin")
    config = {
        "num_experts": 4,
        "num_experts_per_token": 2,
        "molora_r": 4,
        "molora_alpha": 10,
        "add_identity_mapping": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TestAuthors:
    def test_one_command_makes_a_repository_of_it(self, pico: Any, authors: Path, tmp_path: Path) -> None:
        create_repository(str(pico.base("llama")), str(authors), out=tmp_path / "made", convert_pickle=True)
        convert_authors(authors, tmp_path / "out", str(pico.base("llama")))
        for name in ("molora_config.json", "molora_model.safetensors"):
            assert (tmp_path / "made" / "molora" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()

    def test_converted_checkpoint_computes_what_their_code_computes(
        self, pico: Any, authors: Path, tmp_path: Path
    ) -> None:
        description = convert_authors(authors, tmp_path / "out", str(pico.base("llama")))
        assert (description.settings.experts, description.settings.top_k) == (4, 2)
        base, _, switch = _attached(pico, tmp_path / "out")
        tensors = torch.load(authors / "non_lora_trainables.bin", weights_only=True)

        reference = PeftModel.from_pretrained(pico.plain("llama"), str(authors)).eval()
        ids = pico.ids()
        with switch.hold(switch.resolve("attention")):
            assert torch.equal(base(ids).logits, reference(ids).logits)

        def theirs(name: str) -> Callable[..., Any]:
            def hook(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                result = output.clone()
                for row, tokens in enumerate(args[0]):
                    for t, x in enumerate(tokens):
                        logits = tensors[f"{name}.switch.weight"] @ x + tensors[f"{name}.switch.bias"]
                        logits[4:] = -1e4
                        values, chosen = torch.topk(logits, 2)
                        for weight, i in zip(torch.softmax(values, 0), chosen.tolist(), strict=True):
                            a, b = (tensors[f"{name}.experts.{i}.lora_{f}_{i}.weight"] for f in "AB")
                            result[row, t] += weight * (10 / 4) * (b @ (a @ x))
                return result

            return hook

        for name, module in reference.named_modules():
            if ".mlp." in name and isinstance(module, nn.Linear):
                module.register_forward_hook(theirs(name))
        with torch.no_grad():
            torch.testing.assert_close(base(ids).logits, reference(ids).logits, atol=1e-4, rtol=1e-4)

    def test_their_defaults_and_the_file_itself(self, pico: Any, authors: Path, tmp_path: Path) -> None:
        (authors / "config.json").write_text('{"add_identity_mapping": 1, "molora_r": 4}')
        found = convert_authors(authors / "non_lora_trainables.bin", tmp_path / "out", str(pico.base("llama")))
        assert (found.settings.top_k, found.settings.alpha_of("ffn")) == (2, 6)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (lambda t: t.pop(next(k for k in t if "switch.bias" in k)), UpdateMismatchError, "1 missing"),
            (lambda t: t.pop(next(k for k in t if "experts.2" in k)), UpdateMismatchError, "experts|have"),
            (
                lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.weight": torch.ones(24, 16)}),
                UpdateMismatchError,
                "neither an expert's factor nor",
            ),
            (lambda t: t.update(extra={"a": 1}), RepositoryError, "more than named tensors"),
            (lambda t: t.update(extra=Path("x")), RepositoryError, "no file of plain tensors"),
            (lambda t: t.clear(), UpdateMismatchError, "no experts"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_is_written(
        self, pico: Any, authors: Path, tmp_path: Path, change: Any, error: type, match: str
    ) -> None:
        tensors = torch.load(authors / "non_lora_trainables.bin", weights_only=True)
        change(tensors)
        torch.save(tensors, authors / "non_lora_trainables.bin")
        with pytest.raises(error, match=match) as caught:
            convert_authors(authors, tmp_path / "out", str(pico.base("llama")))
        assert caught.value.hint
        assert not (tmp_path / "out").exists()

    def test_runs_that_cannot_be_held(self, pico: Any, authors: Path, tmp_path: Path) -> None:
        base, config = str(pico.base("llama")), json.loads((authors / "config.json").read_text())
        for change, error in (
            ({"share_expert": True}, UnsupportedUpdateError),
            ({"use_rslora": True}, UnsupportedUpdateError),
            ({"num_experts": 8}, UpdateMismatchError),
        ):
            (authors / "config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(error):
                convert_authors(authors, tmp_path / "out", base)
        (authors / "config.json").write_text(json.dumps(config))
        with pytest.raises(RepositoryError, match="no-base' is no folder here"):
            convert_authors(authors, tmp_path / "out", str(tmp_path / "no-base"))
        with pytest.raises(UpdateMismatchError):
            convert_authors(authors, tmp_path / "out", str(pico.base("opt")))


def test_a_repository_of_a_mixture(pico: Any, saved: Any, tmp_path: Path) -> None:
    model = _taia(pico, saved())
    model.save_pretrained(tmp_path)
    again = TAIAForCausalLM.from_pretrained(tmp_path, inference_modules="all").eval()
    assert torch.equal(again(pico.ids()).logits, model(pico.ids()).logits)
    assert isinstance(again._taia_switch, Switch)
    assert not list(tmp_path.rglob("adapter_config.json"))
