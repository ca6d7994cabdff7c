"""The operators of a LoRA layer, and what the layer keeps of PEFT's."""

import pytest
import torch

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.updates.peft import lora


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_fulfil_their_contracts(pico, transposed):
    model = pico.taia("llama")
    switch, site = model._taia_switch.number, 0
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    if transposed:
        x, y = torch.randn(5, 2, 3).transpose(0, 1), torch.randn(5, 2, 4).transpose(0, 1)
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(lora.add_update_in_graph, (y.clone(), x, a, b, None, 0.5, switch, site), test_utils=checks)
    with_grad = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
    arguments = (y, *with_grad, None, 0.5, switch, site)
    torch.library.opcheck(lora.with_update_in_graph, arguments, test_utils=checks)
    scales = torch.tensor([0.5, 0.0], dtype=torch.float64)
    torch.library.opcheck(lora.update_gradients, (torch.randn_like(y), x, a, b, scales), test_utils=checks)


def test_a_merged_update_is_refused(pico):
    model, ids = pico.taia("llama"), pico.ids()
    model._taia_update.peft_model.merge_adapter()
    for setting in ("none", "attention", {"*": 0.5}):
        with pytest.raises(UnsupportedUpdateError, match="merged"):
            model(ids, inference_modules=setting)


def test_hooks_on_the_factors_are_called(pico):
    model, seen = pico.taia("llama"), []
    factor = model.model.layers[0].self_attn.q_proj.lora_A["default"]
    with torch.no_grad():
        plain = model(pico.ids()).logits
        with_hook = factor.register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(model(pico.ids()).logits, plain)
    with_hook.remove()
    assert seen == [1]
