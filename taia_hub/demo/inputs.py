"""What a demo is made of: the shipped base model and items, or the user's own, found and checked before long work.

It runs in the user's process: the user's own Hub is read here, and nowhere else in a demo.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.atomic import scratch_file
from taia_hub.common.resuming import Mark
from taia_hub.demo.samples import DOMAINS, OUTSIDE, TRAINED_DOMAIN, TRAINING_SAMPLE, Item, load_items, sample_path
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results.statistics import FEWEST
from taia_hub.training.recipe import TrainingRecipe

BATCH_SIZE = 4
MAX_LENGTH = 512
"""Longest item in tokens; what is longer is cut off. The shipped ones have at most 190."""
SMOLLM2 = "SmolLM2-135M-Instruct"
PROMPT = "A shop sells pens at 3 dollars each. How much do 4 pens cost?"
FOLDER_MARK = "demo.json"

_OWN_DOMAIN = "your items"
_SHARE = 4  # one of so many items is held out at the most
_BASE_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_SMOLLM2_BYTES = 269_060_552
_COPIES = 3.5  # of the weights: the base, the Hub's and its client's, and the rest


@dataclass(frozen=True)
class Inputs:
    """What a demo is made of.

    Attributes:
        model: The base model's name for people: SmolLM2's, a Hub id or a folder.
        base: Folder of the base model's files; None for SmolLM2, which is unpacked.
        revision: The commit that they are of.
        data: Names of the data for people.
        trained_domain: The domain that is trained on.
        training: The items that are trained on.
        domains: Name of each domain to its held-out items, the trained one first.
        prompt: The conversation that every mode answers.
        notes: What the user should know, a sentence each.
    """

    model: str
    base: str | None
    revision: str | None
    data: tuple[str, ...]
    trained_domain: str
    training: tuple[Item, ...] = field(repr=False)
    domains: Mapping[str, tuple[Item, ...]] = field(repr=False)
    prompt: tuple[dict[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The base model's name without a namespace or folders, which its repository on the demo's Hub gets."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model).resolve().name)[:60].strip("-.") or "model"

    @property
    def is_own(self) -> bool:
        """Whether the items are the user's."""
        return self.trained_domain == _OWN_DOMAIN

    @property
    def adapter_name(self) -> str:
        """The name of the TAIA repository on the demo's Hub."""
        what = "own" if self.is_own else self.trained_domain
        return f"{self.name.lower().removesuffix('-instruct')}-{what}-taia"

    def identity(self) -> dict[str, Any]:
        """Returns what tells this demo from another one in the same folder, as JSON values."""
        return {"model": self.model, "revision": self.revision, "data": list(self.data)}

    def to_json(self) -> dict[str, Any]:
        """Returns the inputs as JSON values; `from_json` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Inputs:
        """Reads what `to_json` wrote."""

        def items(rows: Sequence[Mapping[str, Any]]) -> tuple[Item, ...]:
            return tuple(Item(row["id"], tuple(row["messages"])) for row in rows)

        tuples = {name: tuple(values[name]) for name in ("data", "prompt", "notes")}
        domains = {domain: items(rows) for domain, rows in values["domains"].items()}
        return cls(**{**values, **tuples, "training": items(values["training"]), "domains": domains})


def find_inputs(
    folder: Path, *, model: str | None = None, data: Sequence[str] = (), steps: int, items: int, seed: int
) -> Inputs:
    """Finds and checks base model and items, and that the folder can take the demo; a download of the model comes last.

    `model` is a Hub id or a folder, None for SmolLM2; `data` are as of `taia train`, none for the medical items.

    Raises:
        ConfigError: If items are wrong or too few, the model is no causal language model, or the folder holds another
            demo.
        RepositoryError: If something cannot be found or read, or the folder cannot be written or has too little space.
    """
    found = Inputs(model or SMOLLM2, None, None, tuple(data) or ("MedQuAD",), TRAINED_DOMAIN, (), {}, ())
    weights, notes = _SMOLLM2_BYTES, list[str]()
    check_writable(folder)
    if model is not None:
        found, weights = _checked_model(found, data, steps, seed)
    _refuse_another(folder, found)
    training, held_out = _own_items(data, items, seed) if data else _shipped_items(steps, items)
    if data:
        found = dataclasses.replace(found, trained_domain=_OWN_DOMAIN)
        notes.append(f"Of your {len(training) + len(held_out)} items {len(held_out)} are held out and only measured.")
    check_space(folder, round(weights * _COPIES))
    if model is not None:
        found = dataclasses.replace(found, base=str(_fetch(found)))
    outside = {domain: tuple(load_items(sample)[:items]) for domain, sample in OUTSIDE.items()}
    return dataclasses.replace(
        found,
        training=tuple(training),
        domains={found.trained_domain: tuple(held_out), **outside},
        prompt=held_out[0].prompt if data else ({"role": "user", "content": PROMPT},),
        notes=(*found.notes, *notes),
    )


def demo_recipe(base: str, data: Sequence[str], *, items: int, steps: int, seed: int) -> TrainingRecipe:
    """Returns how a demo trains: a LoRA on all linear layers, at a high rate for few steps, on so many items."""
    return TrainingRecipe(
        base=base,
        data=tuple(data),
        rank=16,
        alpha=32,
        dropout=0.0,  # few items are seen twice, and on a CPU its random masks take a quarter of the time
        learning_rate=2.3e-3,
        warmup_ratio=0.0,
        epochs=steps * BATCH_SIZE / items,
        max_steps=steps,
        batch_size=BATCH_SIZE,
        micro_batch_size=1,  # on a CPU what padding costs is more than what larger products save
        max_length=MAX_LENGTH,
        dtype="float32",  # bfloat16 is slower on CPUs without units for it, and the numbers would differ
        seed=seed,
    )


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written; nothing is left where it could."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(0, f"'{there}' is a file")
        scratch_file(there).unlink()
    except OSError as error:
        raise RepositoryError(
            f"The demo's folder '{folder}' cannot be written: {error.strerror}.", "Name another one with --dir."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Refuses a disk that has not so many bytes left, those counted that the folder has taken already."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    free = shutil.disk_usage(there).free + taken
    if free < needed:
        raise RepositoryError(
            f"The demo takes about {needed / 1e9:.1f} GB, and the disk of '{folder}' has {free / 1e9:.1f} GB left.",
            "Free space, or name a folder on another disk with --dir.",
        )


def _refuse_another(folder: Path, inputs: Inputs) -> None:
    mark = Mark(folder / FOLDER_MARK, inputs.identity())
    if mark.path.is_file() and not mark.fits():
        other = mark.read()
        raise ConfigError(
            f"'{folder}' holds the demo of {other.get('model')} on {', '.join(other.get('data', ()))}.",
            "Name another folder with --dir.",
        )


def _shipped_items(steps: int, items: int) -> tuple[list[Item], list[Item]]:
    # The shortest ones: for what the demo shows they are as good, and a CPU is done with them earlier.
    return load_items(TRAINING_SAMPLE)[: steps * BATCH_SIZE], load_items(DOMAINS[TRAINED_DOMAIN])[:items]


def _own_items(data: Sequence[str], items: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Reads the user's items and holds some out, at random: no question of theirs is trained on."""
    import numpy as np

    from taia_hub.training.sources import read_sources

    rows = [(row["question"], row["messages"]) for source in read_sources(data) for row in source.dataset]
    questions = list(dict.fromkeys(question for question, _ in rows))
    count = min(items, len(questions) // _SHARE)
    if count < min(items, FEWEST):
        raise ConfigError(
            f"There are {len(questions)} items with questions of their own, too few to hold some out.",
            f"Bring at least {min(items, FEWEST) * _SHARE}.",
        )
    chosen = [questions[index] for index in np.random.default_rng(seed).permutation(len(questions))[:count]]
    named = [Item(str(number), tuple(messages)) for number, (_, messages) in enumerate(rows)]
    first = {question: item for (question, _), item in reversed(list(zip(rows, named, strict=True)))}
    training = [item for (question, _), item in zip(rows, named, strict=True) if question not in set(chosen)]
    return training, [first[question] for question in chosen]


def _checked_model(inputs: Inputs, data: Sequence[str], steps: int, seed: int) -> tuple[Inputs, int]:
    """Checks what `taia train` checks of the user's base model, and returns the bytes of its weights in float32."""
    from taia_hub import hub
    from taia_hub.training import plan_training

    names = data or [str(sample_path(TRAINING_SAMPLE))]
    source = hub.resolve_base(inputs.model, None, hub.HubAccess())
    recipe = demo_recipe(inputs.model, names, items=BATCH_SIZE * steps, steps=steps, seed=seed)
    plan = plan_training(recipe.replace(base_revision=source.revision))
    notes = plan.notes
    if plan.memory.available and plan.memory.total > plan.memory.available:
        notes += (
            f"The training takes about {plan.memory.total / 1e9:.1f} GB of memory, and "
            f"{plan.memory.available / 1e9:.1f} GB are free: it may be ended by the system.",
        )
    return dataclasses.replace(inputs, revision=source.revision, notes=notes), 4 * plan.base_parameters


def _fetch(inputs: Inputs) -> Path:
    from taia_hub import hub

    found = hub.fetch(inputs.model, _BASE_FILES, revision=inputs.revision, what="base model")
    if not any(found.folder.glob("*.safetensors")):
        raise RepositoryError(
            f"The base model '{inputs.model}' has no weights as safetensors.",
            "Convert them: load it with transformers and `save_pretrained` it.",
        )
    return found.folder.resolve()
