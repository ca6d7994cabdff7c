"""Losses of items by setting, and how far each setting is from the base: the one place where they are measured."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.common.chat import embedding_rows
from taia_hub.common.devices import free_memory, is_out_of_memory
from taia_hub.common.labels import Encoded
from taia_hub.errors import ConfigError, OutOfMemoryError, SettingError
from taia_hub.retaining.losses import Losses
from taia_hub.retaining.passes import kl_divergence, padded

_TOKENS = 4096  # of a forward pass, all rows together
_LOGITS = 1 << 28  # bytes of the logits that a forward pass gives
_CHUNK = 1 << 24  # bytes of logits that are looked at together, in float32


@torch.no_grad()
def measure(
    model: Any,
    rows: Sequence[Encoded],
    settings: Sequence[Any],
    *,
    divergence: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Losses, ...]:
    """Measures what each setting makes of the labels of N items, and how far it is from the base.

    Items of like length share a batch, in which the settings are rows; where the update cannot treat rows differently,
    the settings take the batch one after the other. Each is compared with the base in its own batch, so that no
    rounding is taken for a divergence. The base is the mode `none`: there is no second model. Logits are of the
    measured part alone, at most 256 MiB of them at a time, or those of a single item under one setting.

    Args:
        model: A loaded TAIA language model; its own setting, and whether it trains, stay as they are. A model without
            an update is measured as it stands, by `settings=[None], divergence=False`.
        rows: N items of `taia_hub.common.labels`: token ids, and labels of the same length, each label for the token
            at its own place (as transformers' models take them). Nothing is cut off.
        settings: M settings, `"none"` among them or not.
        divergence: Whether the base is measured beside them, for `kl` and `changed`.
        progress: Called with the number of items done and N after every batch.

    Returns:
        M values, in the order of the settings.

    Raises:
        SettingError: If a setting is not understood or cannot act on this model, before anything is measured.
        ConfigError: If a loss is no number.
        OutOfMemoryError: If the memory does not suffice for one item under one setting.

    Example:
        ```python
        rows = [Encoded(ids, ids) for ids in tokenizer(texts)["input_ids"]]
        attention, whole = measure(model, rows, ["attention", "all"])
        print(attention.loss, attention.divergence, attention.kept)
        ```
    """
    run = _Run(model, rows, settings, divergence)
    training = model.training
    model.eval()
    try:
        for done in run.batches():
            if progress:
                progress(done, len(rows))
    finally:
        model.train(training)
    return run.losses()


def no_number_hint(dtype: torch.dtype) -> str:
    """Says what makes the loss of a model in a dtype no number, and what to do.

    Example:
        >>> no_number_hint(torch.bfloat16).startswith("Either the model overflows in bfloat16: load it")
        True
    """
    weights = "weights of the update or the base are no numbers: `taia create BASE UPDATE` names those of the update."
    if dtype.itemsize > 2:
        return f"Most likely, {weights}"
    name = str(dtype).removeprefix("torch.")
    return f"Either the model overflows in {name}: load it with --dtype float32 (dtype='float32'). Or {weights}"


@dataclass(frozen=True)
class _Item:
    """An item to be run: its number, the ids that are read, and the P places whose logits predict the P labels."""

    number: int
    ids: list[int]
    places: list[int]
    labels: list[int]


class _Run:
    """One measurement: `settings` are what is run, the base first where the others are compared with it."""

    def __init__(self, model: Any, rows: Sequence[Encoded], settings: Sequence[Any], divergence: bool) -> None:
        self.model, self.divergence = model, divergence
        self.switch: Any = getattr(model, "_taia_switch", None)
        self.settings: list[Any] = []
        if divergence:
            self._enter("none", is_base=False)
        self.order = [self._enter(setting, is_base=divergence) for setting in settings]
        self.items = sorted(filter(None, map(_item, range(len(rows)), rows)), key=lambda one: -len(one.ids))
        self.count = len(rows)
        self.totals = torch.zeros(3, len(self.settings), len(rows), dtype=torch.float64)
        self.by_rows = len(self.settings) > 1 and self._takes_rows()
        parameters = inspect.signature(type(model).forward).parameters
        self.keeps = "logits_to_keep" in parameters
        self.tokens, self.bytes = _TOKENS, _LOGITS
        self.vocabulary = max(embedding_rows(model) or 0, getattr(model.config.get_text_config(), "vocab_size", 0), 1)

    def _enter(self, setting: Any, *, is_base: bool) -> int:
        """Returns where a setting stands among those that are run; where the first is the base, so is all masked."""
        if self.switch is None:
            if setting is not None:
                raise SettingError(
                    f"The setting {setting!r} came for a model without an update.",
                    "Measure it as it stands: settings=[None], divergence=False.",
                )
        elif not any(self.switch.allowed(self.switch.resolve(setting)).weights) and is_base:
            return 0
        self.settings.append(setting)
        return len(self.settings) - 1

    def _takes_rows(self) -> bool:
        try:
            self.switch.resolve_rows(self.settings)
        except SettingError:  # modules of this architecture must treat all rows alike
            return False
        return True

    def losses(self) -> tuple[Losses, ...]:
        tokens = [0] * self.count
        for item in self.items:
            tokens[item.number] = len(item.places)
        nats, kl, changed = self.totals.tolist()
        if not self.totals.isfinite().all():
            raise ConfigError("A loss is no number.", no_number_hint(self.model.dtype))
        if not self.divergence:
            return tuple(Losses(tuple(tokens), tuple(nats[at])) for at in self.order)
        counts = [tuple(map(int, row)) for row in changed]
        return tuple(Losses(tuple(tokens), tuple(nats[at]), tuple(kl[at]), counts[at]) for at in self.order)

    def batches(self) -> Iterator[int]:
        """Measures batch by batch, the longest items first, and yields the number of items done."""
        start, skipped = 0, self.count - len(self.items)
        while start < len(self.items):
            batch, full = self.batch(start), False
            try:
                self.totals[:, :, [item.number for item in batch]] = self.measured(batch)
            except SettingError:  # told where rows are regrouped on the way
                if not self.by_rows:
                    raise
                self.by_rows = False
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold what was allocated
                full = True
            if not full:
                start += len(batch)
                yield start + skipped
                continue
            free_memory()
            if len(batch) == 1 and self.rows(batch) == 1:
                raise OutOfMemoryError(
                    f"The memory does not suffice for one item of {len(batch[0].ids):,} tokens.",
                    "Give shorter texts, or load the model in a smaller dtype, such as bfloat16.",
                )
            self.tokens, self.bytes = (self.rows(batch) * len(batch) * len(batch[0].ids)) // 2, self.bytes // 2

    def batch(self, start: int) -> list[_Item]:
        """Takes as many items as fit beside each other under all settings, or one."""
        batch = self.items[start : start + 1]
        for item in self.items[start + 1 :]:
            if self.most([*batch, item]) < (len(batch) + 1) * (len(self.settings) if self.by_rows else 1):
                break
            batch.append(item)
        return batch

    def most(self, batch: Sequence[_Item]) -> int:
        """Returns how many rows of a batch's length a forward pass may have."""
        length, kept = len(batch[0].ids), self.kept(batch)
        size = kept * self.vocabulary * self.model.dtype.itemsize
        held = 1 if self.by_rows or not self.divergence else 2  # the base's logits wait for the settings'
        return max(1, min(self.tokens // length, self.bytes // (size * held)))

    def rows(self, batch: Sequence[_Item]) -> int:
        """Returns how many settings of a batch are run together."""
        fitting = self.most(batch) // len(batch) if self.by_rows else 1
        return 1 if fitting < 2 and self.divergence else max(1, min(fitting, len(self.settings)))

    def kept(self, batch: Sequence[_Item]) -> int:
        """Returns how many places at the end have logits that are looked at."""
        return len(batch[0].ids) - min(item.places[0] for item in batch)

    def measured(self, batch: Sequence[_Item]) -> torch.Tensor:
        """Returns nats, KL and changes of I items under all S settings, (3, S, I) float64."""
        width = self.rows(batch)
        found, base = [], None
        if width == 1 or not self.divergence:
            for at in range(0, len(self.settings), width):
                logits = self.logits(batch, self.settings[at : at + width])
                base = logits[:1] if self.divergence and base is None else base
                found.append(self.compared(batch, logits, base))
        else:
            first = True
            for at in range(1, len(self.settings), width - 1):
                logits = self.logits(batch, ["none", *self.settings[at : at + width - 1]])
                found.append(self.compared(batch, logits, logits[:1])[:, 0 if first else 1 :])
                first = False
            if first:
                found.append(self.compared(batch, logits := self.logits(batch, ["none"]), logits))
        return torch.cat(found, 1)

    def logits(self, batch: Sequence[_Item], settings: Sequence[Any]) -> torch.Tensor:
        """Returns the (S, I, K, V) logits of the last K places of I items under S settings."""
        kept = self.kept(batch)
        inputs = padded([item.ids for item in batch], self.model.device, times=len(settings))
        keywords: dict[str, Any] = {"use_cache": False} | ({"logits_to_keep": kept} if self.keeps else {})
        if self.switch is not None:
            rows = [setting for setting in settings for _ in batch]
            keywords["inference_modules"] = rows if len(settings) > 1 else settings[0]
        logits = self.model(**inputs, **keywords).logits[:, -kept:]
        return logits.view(len(settings), len(batch), kept, -1)

    def compared(self, batch: Sequence[_Item], logits: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """Returns nats, KL from `base`, (1, I, K, V), and changes of each item, (3, S, I) float64."""
        settings, _, kept, vocabulary = logits.shape
        before = len(batch[0].ids) - kept
        number = torch.tensor([at for at, item in enumerate(batch) for _ in item.places])
        place = torch.tensor([place - before for item in batch for place in item.places])
        label = torch.tensor([label for item in batch for label in item.labels])
        found = torch.zeros(3, settings, len(batch), dtype=torch.float64)
        step = max(1, _CHUNK // (4 * vocabulary))
        for at in range(0, len(label), step):
            some = number[at : at + step]
            where = some.to(logits.device), place[at : at + step].to(logits.device)
            labels = label[at : at + step].to(logits.device)
            reference = None if base is None else base[0][where].float().log_softmax(-1)
            tokens = torch.stack([_compared(one[where], labels, reference) for one in logits], 1)
            found.index_add_(2, some, tokens.cpu().double())
        return found


def _item(number: int, row: Encoded) -> _Item | None:
    """Returns what is run of an item, up to the last token that predicts a measured label; None without one."""
    if not (measured := row.measured):
        return None
    places = [at - 1 for at in measured]
    return _Item(number, list(row.input_ids[: measured[-1]]), places, [row.labels[at] for at in measured])


def _compared(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """Returns nats of (P,) labels, KL from (P, V) log-probabilities, and changes, for (P, V) logits: (3, P)."""
    scores = logits.float().log_softmax(-1)
    nats = -scores.gather(1, labels[:, None])[:, 0]
    if reference is None:
        return torch.stack([nats, torch.zeros_like(nats), torch.zeros_like(nats)])
    changed = (scores.argmax(-1) != reference.argmax(-1)).float()
    kl = kl_divergence(reference, scores).clamp_(min=0.0)  # below zero it is rounding
    return torch.stack([nats, kl, changed])
