"""A small trained base, and updates of which it is known what is useful."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.tuning import running, work
from tests.conftest import made_once

LENGTH = 12
_VOCABULARY = 32
USEFUL = [("attention", 0), ("ffn", 1)]
EVERY = [(role, layer) for layer in (0, 1) for role in ("attention", "ffn")]


def chain(count: int, seed: int, rule: int) -> torch.Tensor:
    """Token ids of a rule: each token is one of two that follow from the one before."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, _VOCABULARY, (count, 1), generator=generator)
    while ids.shape[1] < LENGTH:
        choice = torch.randint(0, 2, (count, 1), generator=generator)
        ids = torch.cat([ids, 2 + (ids[:, -1:] * (5 + 2 * rule) + 3 * rule + choice) % (_VOCABULARY - 2)], 1)
    return ids


def rows(count: int, seed: int, rule: int) -> list[Encoded]:
    """Items of a rule, as `tune` takes them."""
    return [Encoded(row, [IGNORED_LABEL, *row[1:]]) for row in chain(count, seed, rule).tolist()]


def general(count: int, seed: int) -> list[Encoded]:
    """Items of what the base was trained on, which are to be retained."""
    return [row for rule in (0, 1) for row in rows(count // 2, seed + rule, rule)]


def _train(model: Any, parameters: Sequence[Any], steps: int, rate: float, seed: int, rules: Sequence[int]) -> None:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for step in range(steps):
        ids = chain(32, 100_000 + 1000 * seed + step, rules[step % len(rules)])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def trained_base(shared: Path) -> Any:
    """A base of two layers that knows two rules, with an update of zeros under the switch."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            num_key_value_heads=4, max_position_embeddings=64, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        base = LlamaForCausalLM(config)
        _train(base, list(base.parameters()), 300, 3e-3, 0, (0, 1))
        base.save_pretrained(folder / "base")
        get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(folder / "adapter")

    folder = made_once(shared / "tuning-base", make)
    return TAIAForCausalLM.from_adapter(folder / "base", folder / "adapter", inference_modules="all").eval()


def factors(model: Any, groups: Sequence[tuple[str, int]]) -> list[torch.nn.Parameter]:
    """The LoRA factors of the modules of some roles in layers."""
    sites = [site for site in model._taia_switch.sites if (site.role, site.layer) in groups]
    layers = [model.get_submodule(site.path) for site in sites]
    return [factor for layer in layers for pair in (layer.lora_A, layer.lora_B) for factor in pair.parameters()]


def with_update(
    base: Any, useful: Sequence[tuple[str, int]], seed: int, *, noise: float = 0.25, steps: int = 25
) -> Any:
    """Returns a copy whose update is trained on a new rule in some groups, and random in the others."""
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = factors(model, useful)
    for factor in trained:
        factor.requires_grad_(True)
    if trained:
        _train(model, trained, steps, 1e-2, 1 + seed, (2,))
    with torch.no_grad():
        for factor in factors(model, [one for one in EVERY if one not in useful]):
            factor.normal_(0, noise)
    for factor in trained:
        factor.requires_grad_(False)
        factor.grad = None
    return model


@pytest.fixture(scope="session")
def update(trained_base: Any) -> Any:
    """A model of whose update two parts of four are useful."""
    return with_update(trained_base, USEFUL, seed=0)


def a_second_a_look(patch: pytest.MonkeyPatch) -> None:
    """Makes every look of a tuning at the clock take a second; the clock of all others, servers included, goes on."""
    clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)
    for module in (running, work):
        patch.setattr(module, "time", clock)
