"""What a demo is made of: the shipped base model and items, or the user's own, found and checked before long work.

It runs in the user's process: the user's own Hub is read here, and nowhere else in a demo.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.atomic import scratch_file
from taia_hub.common.resuming import Mark
from taia_hub.common.text_tables import byte_size
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
_LARGE_FOLDERS = ("base", "hub", "model")
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
    if data:
        training, held_out, note = _own_items(data, steps, items, seed)
        found = dataclasses.replace(found, trained_domain=_OWN_DOMAIN)
        notes.append(note)
    else:
        training, held_out = _shipped_items(steps, items)
    hub.check_space(folder, round(weights * _COPIES) - _taken(folder), "The demo", " --dir names it.")
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
        holdout=0.0,  # the demo has items of its own to measure with
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


def _taken(folder: Path) -> int:
    """Returns the bytes of what a demo has made in the folder already, and of nothing else that lies there."""
    if not (folder / FOLDER_MARK).is_file():
        return 0
    files = (path for name in _LARGE_FOLDERS for path in (folder / name).rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


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


def _own_items(data: Sequence[str], steps: int, items: int, seed: int) -> tuple[list[Item], list[Item], str]:
    """Reads the user's items, holds some out and draws what is trained on: at random, and no question is in both.

    The third value says in a sentence what was drawn.
    """
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
    random = np.random.default_rng(seed)
    chosen = dict.fromkeys(questions[index] for index in random.permutation(len(questions))[:count])
    first = {question: number for number, (question, _) in reversed([*enumerate(rows)])}
    rest = [number for number, (question, _) in enumerate(rows) if question not in chosen]
    drawn = sorted(random.permutation(len(rest))[: steps * BATCH_SIZE])

    def named(numbers: Iterable[int]) -> list[Item]:
        return [Item(str(number), tuple(rows[number][1])) for number in numbers]

    note = f"Of your {count + len(rest)} items {count} are held out and only measured"
    if len(drawn) < len(rest):
        note += f", and {len(drawn)} of the rest are drawn to train on"
    return named(rest[index] for index in drawn), named(map(first.__getitem__, chosen)), f"{note}."


def _checked_model(inputs: Inputs, data: Sequence[str], steps: int, seed: int) -> tuple[Inputs, int]:
    """Checks what `taia train` checks of the user's base model, and returns the bytes of its weights in float32."""
    from taia_hub.training import plan_training

    names = data or [str(sample_path(TRAINING_SAMPLE))]
    source = hub.resolve_base(inputs.model, None, hub.HubAccess())
    recipe = demo_recipe(inputs.model, names, items=BATCH_SIZE * steps, steps=steps, seed=seed)
    plan = plan_training(recipe.replace(base_revision=source.revision))
    notes = plan.notes
    if plan.memory.available and plan.memory.total > plan.memory.available:
        notes += (
            f"The training takes about {byte_size(plan.memory.total)} of memory, and "
            f"{byte_size(plan.memory.available)} are free: it may be ended by the system.",
        )
    return dataclasses.replace(inputs, revision=source.revision, notes=notes), 4 * plan.base_parameters


def _fetch(inputs: Inputs) -> Path:
    found = hub.fetch(inputs.model, _BASE_FILES, revision=inputs.revision, what="base model")
    if not any(found.folder.glob("*.safetensors")):
        raise RepositoryError(
            f"The base model '{inputs.model}' has no weights as safetensors.",
            "Convert them: load it with transformers and `save_pretrained` it.",
        )
    return found.folder.resolve()
