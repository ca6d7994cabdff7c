"""What each mode keeps of the base, in numbers with intervals and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.common.text_tables import aligned, amount
from taia_hub.results.drawing import draw
from taia_hub.results.format import TaskResults
from taia_hub.results.statistics import FEWEST, Interval

RETENTION = "retention"
"""Name of the task that says what a mode keeps of the base; behind a colon that of other texts than the shipped."""
HOLDOUT = "holdout"
"""Name of the task of a training's own items that were held out."""
KL, LOSS, KEPT = "kl", "loss", "kept"
"""The metrics of such tasks: nats a token twice, and the share of tokens whose most likely next token is the base's."""


@dataclass(frozen=True)
class Retained:
    """What one mode keeps of the base on some texts, with 95 % intervals.

    Attributes:
        mode: Label of the setting.
        kept: Share of the tokens whose most likely next token is the base's, in [0, 1].
        divergence: KL(base || mode) in nats a token.
        loss: Nats a token.
    """

    mode: str
    kept: Interval
    divergence: Interval
    loss: Interval


def is_retention(key: str) -> bool:
    """Tells whether a task, by its name or key, says what a mode keeps of the base.

    Example:
        >>> is_retention("retention"), is_retention("retention:letters"), is_retention("holdout")
        (True, True, False)
    """
    return key.partition(":")[0] == RETENTION


def retained(task: TaskResults) -> tuple[Retained, ...]:
    """Reads what each mode keeps out of the results of a task with the metrics `kept`, `kl` and `loss`.

    Args:
        task: Its results.

    Returns:
        One value a mode that has all three, in their order.
    """
    labels = [label for label, mode in task.modes.items() if {KL, LOSS, KEPT} <= mode.values.keys()]
    if not labels:
        return ()
    draws = [draw(task, labels, metric) for metric in (KEPT, KL, LOSS)]
    return tuple(
        Retained(label, *(one.interval(at) for one in draws if one is not None)) for at, label in enumerate(labels)
    )


def sentence(found: Retained, where: str, items: int) -> str:
    """Says in words what a mode keeps.

    Args:
        found: What it keeps.
        where: On which texts, as in `"on general text"`.
        items: Number of texts; of too few the intervals tell nothing and are left out.

    Example:
        >>> one = Retained("ffn", Interval(0.978, 0.971, 0.984), Interval(0.0121, 0.01, 0.02), Interval(3.1, 3.0, 3.2))
        >>> sentence(one, "on general text", 64)
        "ffn keeps 97.8 % of the base's next tokens on general text (97.1 to 98.4), KL 0.012"
    """
    kept = found.kept
    interval = f" ({100 * kept.low:.1f} to {100 * kept.high:.1f})" if items >= FEWEST else ""
    return (
        f"{found.mode} keeps {100 * kept.value:.1f} % of the base's next tokens {where}{interval}, "
        f"KL {format_nats(found.divergence.value)}"
    )


def sentences(task: TaskResults) -> list[str]:
    """Says in words what each mode but the base keeps, and where there are too few texts for intervals."""
    where, items = task.title.removeprefix("Retention "), len(task.items)
    lines = [sentence(one, where, items) for one in retained(task) if one.mode != "none"]
    if items < FEWEST:
        few = f"{amount(items, 'text')} {'is' if items == 1 else 'are'} too few"
        lines.append(f"{few} to say how sure this is: give at least {FEWEST}.")
    return lines


def retention_table(found: Sequence[Retained]) -> str:
    """Lays out by mode what is kept, the divergence and the loss, each with its interval."""
    rows = [["mode", "kept", "", "KL", "", "loss", ""]]
    for one in found:
        kept = [f"{100 * value:.1f}" for value in (one.kept.value, one.kept.low, one.kept.high)]
        rows.append([one.mode, f"{kept[0]} %", f"{kept[1]}..{kept[2]}", *_cells(one.divergence), *_cells(one.loss)])
    return aligned(rows, left=(0, 2, 4, 6))


def format_nats(value: float) -> str:
    """Writes nats a token with three decimals, small ones with two figures.

    Example:
        >>> format_nats(2.4171), format_nats(0.0004271), format_nats(0.0)
        ('2.417', '0.00043', '0.000')
    """
    return f"{value:.3f}" if value >= 0.01 or not value else f"{value:.2g}"


def _cells(interval: Interval) -> tuple[str, str]:
    return format_nats(interval.value), f"{format_nats(interval.low)}..{format_nats(interval.high)}"
