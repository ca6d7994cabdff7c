"""Losses on held-out answers, measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from taia_hub.common.progress import Progress
from taia_hub.demo.losses import MODES, DomainLosses, summarise
from taia_hub.demo.samples import Item
from taia_hub.retaining import Losses, measure
from taia_hub.training.encoding import Encoder

Domains = Mapping[str, Sequence[Item]]


def domain_losses(
    model: Any,
    tokenizer: Any,
    domains: Domains,
    settings: Sequence[Any] = (None,),
    *,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Losses]]:
    """Measures a causal model under each setting on the answers of the items of each domain, by its name.

    A model without an update is measured as it stands, under the setting None. Items are cut off at `max_length`
    tokens, as a training does. lm-evaluation-harness scores the log likelihood of whole answers without the mark that
    ends them and without their number of tokens, so nats a token over the very labels that training sees are measured
    here.

    Example:
        >>> domain_losses(model, tokenizer, {"maths": load_items("maths_heldout")})  # doctest: +SKIP
        [{'maths': Losses(tokens=(45, ...), nats=(61.3, ...), kl=(), changed=())}]
    """
    encoder = Encoder(tokenizer)
    rows = [encoder.encode(item.messages).first(max_length) for items in domains.values() for item in items]

    def advance(done: int, total: int) -> None:
        if progress:
            progress("evaluation", done, total)

    found = measure(model, rows, settings, divergence=False, progress=advance)
    ends = list(itertools.accumulate(map(len, domains.values())))
    parts = list(zip(domains, map(slice, [0, *ends], ends), strict=True))
    return [{domain: Losses(one.tokens[part], one.nats[part]) for domain, part in parts} for one in found]


def mode_table(
    model: Any,
    tokenizer: Any,
    domains: Domains,
    *,
    base: Mapping[str, Losses] | None = None,
    max_length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[DomainLosses]:
    """Measures every mode of a TAIA model on the held-out items of each domain, in the order of `domains`.

    `base` are the losses of the base model where they were measured before: those of the mode `none`, which is the
    same model. `seed` is that of the bootstrap; `progress` counts the items done, in all modes at once.

    Example:
        >>> mode_table(model, tokenizer, {"maths": load_items("maths_heldout")})  # doctest: +SKIP
        [DomainLosses(domain='maths', items=64, ...)]
    """
    known = {} if base is None else {"none": base}
    wanted = [mode for mode in MODES if mode not in known]
    measured = domain_losses(model, tokenizer, domains, wanted, max_length=max_length, progress=progress)
    found = {**known, **dict(zip(wanted, measured, strict=True))}
    return [summarise(domain, {mode: found[mode][domain] for mode in MODES}, seed=seed) for domain in domains]
