"""Losses on held-out answers, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.common.progress import Progress
from taia_hub.demo.losses import MODES, DomainLosses, ItemLoss, summarise
from taia_hub.demo.samples import Item
from taia_hub.training.encoding import Encoder

Losses = Mapping[str, Sequence[ItemLoss]]
"""Name of a domain to the losses of its items, in their order."""


def domain_losses(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[Item]],
    *,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Losses:
    """Measures a causal model, in its present mode, on the answers of the items of each domain.

    Items are cut off at `max_length` tokens, as a training does. lm-evaluation-harness scores the log likelihood of
    whole answers without the mark that ends them and without their number of tokens, so nats a token over the very
    labels that training sees are measured here.

    Example:
        >>> domain_losses(model, tokenizer, {"maths": load_items("maths_heldout")})  # doctest: +SKIP
        {'maths': [ItemLoss(nats=61.3, tokens=45), ...]}
    """
    encoder, total, done = Encoder(tokenizer), sum(map(len, domains.values())), 0
    found: dict[str, list[ItemLoss]] = {domain: [] for domain in domains}
    model.eval()
    for domain, items in domains.items():
        for item in items:
            found[domain].append(_loss(model, encoder.encode(item.messages), max_length))
            done += 1
            if progress:
                progress("evaluation", done, total)
    return found


@torch.inference_mode()
def _loss(model: Any, encoded: Encoded, max_length: int | None) -> ItemLoss:
    labels = torch.tensor(encoded.labels[1:max_length])
    seen = (labels != IGNORED_LABEL).nonzero().flatten()
    if not len(seen):  # the prompt alone is longer
        return ItemLoss(0.0, 0)
    kept = len(labels) - int(seen[0])  # no logits of the prompt: with a large vocabulary they take the most time
    ids = torch.tensor([encoded.input_ids[:max_length]], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=kept + 1, use_cache=False).logits[0, :-1].float().cpu()
    nats = torch.nn.functional.cross_entropy(logits, labels[-kept:], ignore_index=IGNORED_LABEL, reduction="sum")
    return ItemLoss(nats.item(), len(seen))


def mode_table(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[Item]],
    *,
    base: Losses | None = None,
    max_length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[DomainLosses]:
    """Measures every mode of a TAIA model on the held-out items of each domain, in the order of `domains`.

    `base` are the losses of the base model where they were measured before: those of the mode `none`, bit for bit.
    `seed` is that of the bootstrap; `progress` counts the items done, over all modes and domains.

    Example:
        >>> mode_table(model, tokenizer, {"maths": load_items("maths_heldout")})  # doctest: +SKIP
        [DomainLosses(domain='maths', items=64, ...)]
    """
    found = {} if base is None else {"none": base}
    wanted = [mode for mode in MODES if mode not in found]
    for number, mode in enumerate(wanted):

        def report(stage: str, done: int, total: int, before: int = number) -> None:
            if progress:
                progress(stage, before * total + done, len(wanted) * total)

        with model.using(mode):
            found[mode] = domain_losses(model, tokenizer, domains, max_length=max_length, progress=report)
    return [summarise(domain, {mode: found[mode][domain] for mode in MODES}, seed=seed) for domain in domains]
