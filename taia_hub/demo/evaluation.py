"""Losses of each mode on held-out answers, with intervals by the bootstrap over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.common.progress import Progress
from taia_hub.demo.samples import Item
from taia_hub.results.statistics import Interval, resample
from taia_hub.training.encoding import IGNORED_LABEL, Encoded, Encoder

MODES = ("none", "attention", "ffn", "all")
COMPARED = (("attention", "none"), ("ffn", "none"), ("all", "none"), ("attention", "all"))
"""The differences of a table: a mode and the one that it is compared with."""


@dataclass(frozen=True)
class ItemLoss:
    """The negative log likelihood of one answer, summed over its tokens, of which the end mark is one."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class DomainLosses:
    """The loss of each mode in one domain, and of `(mode, reference)` the loss of the first less that of the second."""

    domain: str
    items: int
    losses: Mapping[str, Interval]
    differences: Mapping[tuple[str, str], Interval]


def answer_losses(
    model: Any, tokenizer: Any, items: Sequence[Item], *, progress: Progress | None = None
) -> list[ItemLoss]:
    """Measures a causal model, in its present mode, on the answers of some items, one loss an item in their order.

    lm-evaluation-harness scores the log likelihood of whole answers without the mark that ends them and without their
    number of tokens, so nats a token over the very labels that training sees are measured here.
    """
    encoder, losses = Encoder(tokenizer), list[ItemLoss]()
    model.eval()
    for item in items:
        turns = [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        losses.append(_loss(model, encoder.encode(turns)))
        if progress:
            progress("evaluation", len(losses), len(items))
    return losses


@torch.inference_mode()
def _loss(model: Any, encoded: Encoded) -> ItemLoss:
    labels = torch.tensor(encoded.labels[1:])
    seen = (labels != IGNORED_LABEL).nonzero().flatten()
    kept = len(labels) - int(seen[0])  # no logits of the prompt: with a large vocabulary they take the most time
    ids = torch.tensor([encoded.input_ids], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=kept + 1, use_cache=False).logits[0, :-1].float().cpu()
    nats = torch.nn.functional.cross_entropy(logits, labels[-kept:], ignore_index=IGNORED_LABEL, reduction="sum")
    return ItemLoss(nats.item(), len(seen))


def mode_table(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[Item]],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[DomainLosses]:
    """Measures every mode of a TAIA model on the held-out items of each domain, in the order of `domains`.

    `seed` is that of the bootstrap; `progress` counts the items done, over all modes and domains.

    Example:
        >>> mode_table(model, tokenizer, {"maths": load_items("maths_heldout")})  # doctest: +SKIP
        [DomainLosses(domain='maths', items=40, ...)]
    """
    total, before = len(MODES) * sum(len(items) for items in domains.values()), 0
    table = []
    for domain, items in domains.items():
        losses = {}
        for mode in MODES:

            def report(stage: str, done: int, _: int, before: int = before) -> None:
                if progress:
                    progress(stage, before + done, total)

            with model.using(mode):
                losses[mode] = answer_losses(model, tokenizer, items, progress=report)
            before += len(items)
        table.append(summarise(domain, losses, seed=seed))
    return table


def summarise(
    domain: str, losses: Mapping[str, Sequence[ItemLoss]], *, resamples: int = 2000, seed: int = 0
) -> DomainLosses:
    """Turns the losses of N items, in one order for all modes, into means and differences with 95 % intervals.

    Items are drawn with replacement, the same ones for every mode: what makes an item hard for all modes cancels in a
    difference, whose interval is therefore much narrower than those of the two losses. Losses are nats per answer token
    (all nats over all tokens), the differences those of `COMPARED`.

    Example:
        >>> items = [ItemLoss(2.0, 2), ItemLoss(4.0, 2)]
        >>> summarise("maths", dict.fromkeys(MODES, items)).losses["all"]
        Interval(value=1.5, low=1.0, high=2.0)
    """
    if not losses[MODES[0]]:
        raise ValueError(f"The domain '{domain}' has no items.")
    nats = [[loss.nats for loss in losses[mode]] for mode in MODES]
    tokens = [loss.tokens for loss in losses[MODES[0]]]
    drawn = resample(nats, weights=tokens, resamples=resamples, seed=seed, stream=domain)
    return DomainLosses(
        domain,
        len(tokens),
        {mode: drawn.interval(index) for index, mode in enumerate(MODES)},
        {(a, b): drawn.difference(MODES.index(a), MODES.index(b)) for a, b in COMPARED},
    )
