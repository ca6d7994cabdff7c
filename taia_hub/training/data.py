"""The items of a training run, checked, held out, mixed and in order, with the record of what they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taia_hub.common.imports import import_or_raise
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError
from taia_hub.training import mixing
from taia_hub.training.composition import Composition, compose, record_held_out, record_noise
from taia_hub.training.noise import Noise, draw_noise, noisy_rows
from taia_hub.training.sources import Source, cached_dataset, fingerprint_of, read_sources

if TYPE_CHECKING:
    from taia_hub.training.recipe import TrainingRecipe


@dataclass(frozen=True)
class PreparedData:
    """The items of a training run, and what the record says of them.

    `train` holds `messages` and `source` in the order of training, all epochs included: a list of indices into
    memory-mapped files, to be read once from the first to the last. `datasets` have the fields of
    `cards.data.DatasetFacts`; their `items` are the different ones that are trained on. `held_out` are rows as of
    `train`, with their own answers, that are never trained on, in random order: the first ones are a sample of all.
    `notes` are for the user.
    """

    train: Any
    datasets: tuple[dict[str, Any], ...]
    composition: Composition
    held_out: Any
    notes: tuple[str, ...] = ()


def prepare_data(
    recipe: TrainingRecipe, *, token: str | bool | None = None, progress: Progress | None = None
) -> PreparedData:
    """Reads, checks, holds out, mixes and orders the items of a recipe; nothing is returned if one of them is wrong.

    Which items there are depends on `data`, `in_domain`, `ood`, `ood_ratio`, `mixing`, `total` and `holdout`, which
    takes its items from `data` or `in_domain` before all else; their order on
    `schedule`, `epochs` and, as far as they end it earlier, `max_steps` and `batch_size`. With `packing` a step takes
    more items than `batch_size`, so the items of all epochs are there. The same recipe and files give the same items in
    the same order.

    Example:
        >>> data = prepare_data(TrainingRecipe(base="org/base", data=("items.jsonl",)))  # doctest: +SKIP
        >>> data.train[0]["messages"]  # doctest: +SKIP
        [{'role': 'user', 'content': '…'}, {'role': 'assistant', 'content': '…'}]
    """
    datasets = import_or_raise("datasets", "train", "Training")
    names = (*recipe.data, *recipe.in_domain, *recipe.ood)
    groups = ["data"] * len(recipe.data) + ["in_domain"] * len(recipe.in_domain) + ["ood"] * len(recipe.ood)
    _check(recipe)
    sources = read_sources(names, token=token, progress=progress)
    sizes = np.array([len(one.dataset) for one in sources])
    numbers = np.repeat(np.arange(len(sources)), sizes)
    answers, questions = (np.concatenate([getattr(one, key) for one in sources]) for key in ("answers", "questions"))
    outside = np.array([group == "ood" for group in groups])[numbers]

    held = _hold_out(recipe, questions, np.flatnonzero(~outside), int(outside.sum()))
    is_held = np.isin(np.arange(len(numbers)), held)
    inside, ood = _choose(recipe, np.flatnonzero(~outside & ~is_held), np.flatnonzero(outside))
    chosen = np.concatenate([inside, ood])
    order = _order(recipe, inside, ood)
    donors = np.where(is_held, len(sources), numbers)  # an answer that is held out is nobody's wrong one
    noise = draw_noise(chosen, donors, answers, ratio=recipe.noise_ratio, seed=recipe.seed)

    labels, starts = [one.label for one in sources], np.cumsum(sizes) - sizes
    composition = dataclasses.replace(
        compose(order, numbers, labels, groups, np.isin(np.arange(len(numbers)), noise.items)),
        duplicates=len(chosen) - len(np.unique(questions[chosen])),
        noise=record_noise(noise, recipe.noise_ratio, numbers, labels, starts) if recipe.noise_ratio else None,
        held_out=record_held_out(held, numbers, labels, starts),
    )
    used = np.bincount(numbers[np.unique(order)], minlength=len(sources)).tolist()
    facts = (dataclasses.replace(one.facts, items=count) for one, count in zip(sources, used, strict=True))
    pool = _pool(datasets, sources, noise).select_columns(["messages", "source"])
    train = pool.select(_pointed(order, noise, len(numbers)))
    few = mixing.held_out_size(int((~outside).sum()), recipe.holdout) and not len(held)
    notes = (
        ("No items could be held out: too few have a question of their own, or training needs them.",) if few else ()
    )
    return PreparedData(train, tuple(map(dataclasses.asdict, facts)), composition, pool.select(held), notes)


def _check(recipe: TrainingRecipe) -> None:
    if not recipe.data and not recipe.in_domain:
        raise ConfigError("The recipe names no data.", "Give data, or in_domain and ood to be mixed.")
    if recipe.ood and recipe.ood_ratio is None:
        raise ConfigError("The recipe has ood without ood_ratio.", "Say which share of the items shall be of ood.")
    if recipe.schedule == "linear" and not recipe.ood:
        raise ConfigError(
            "The schedule 'linear' changes the share of ood, and there is none.", "Give in_domain and ood."
        )


def _hold_out(recipe: TrainingRecipe, questions: np.ndarray, inside: np.ndarray, ood: int) -> np.ndarray:
    """Draws what is held out, of what a fixed total leaves over."""
    spare = None
    if recipe.total is not None and recipe.mixing == "replace":
        spare = (
            len(inside)
            - mixing.plan_shares(len(inside), ood, ood_ratio=recipe.ood_ratio or 0.0, total=recipe.total).in_domain
        )
    return mixing.hold_out(questions, inside, share=recipe.holdout, seed=recipe.seed, spare=spare)


def _choose(recipe: TrainingRecipe, inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = mixing.plan_shares(
        len(inside), len(outside), ood_ratio=recipe.ood_ratio or 0.0, mixing=recipe.mixing, total=recipe.total
    )
    return (
        inside[mixing.choose(len(inside), shares.in_domain, recipe.seed, 0)],
        outside[mixing.choose(len(outside), shares.ood, recipe.seed, 1)],
    )


def _order(recipe: TrainingRecipe, inside: np.ndarray, ood: np.ndarray) -> np.ndarray:
    most = recipe.max_steps * recipe.batch_size if recipe.max_steps and not recipe.packing else None
    length = mixing.training_length(len(inside) + len(ood), recipe.epochs, most)
    if recipe.schedule == "linear":
        return mixing.order_annealed(inside, ood, length, recipe.seed)
    return mixing.order_uniform(np.concatenate([inside, ood]), length, recipe.seed)


def _pool(datasets: Any, sources: tuple[Source, ...], noise: Noise) -> Any:
    """Joins the sources, and behind them the items with wrong answers."""
    pool = datasets.concatenate_datasets([one.dataset for one in sources])
    if not len(noise.items):
        return pool
    content = [one.fingerprint for one in sources]
    name = fingerprint_of("noise", *content, noise.items.tobytes().hex(), noise.donors.tobytes().hex())
    return datasets.concatenate_datasets([pool, cached_dataset(datasets, lambda: noisy_rows(pool, noise), name)])


def _pointed(order: np.ndarray, noise: Noise, items: int) -> np.ndarray:
    """Makes the indices of items with wrong answers point behind the sources, where `_pool` has them."""
    places = np.arange(items)
    places[noise.items] = items + np.arange(len(noise.items))
    return places[order]
