"""What each mode gains and keeps, in words and as a table; the terminal and cards say the same."""

from __future__ import annotations

from collections.abc import Callable

from taia_hub.common.text_tables import aligned, amount
from taia_hub.results.retained import format_nats
from taia_hub.results.statistics import FEWEST, Interval
from taia_hub.results.tradeoff import BASE, HALF, Tradeoff

_ANSWERS = "of the base model's answers on general text"
Name = Callable[[str], str]
"""Writes the label of a setting."""


def tradeoff_words(found: Tradeoff, name: Name = str) -> tuple[str, ...]:
    """Says in sentences which mode to use, and why.

    Args:
        found: What the modes gain and keep.
        name: Writes the label of a setting.

    Example:
        >>> from taia_hub.results.tradeoff import Traded
        >>> modes = {"none": Traded(2.4), "all": Traded(2.0, Interval(0.4, 0.3, 0.5), Interval(0.931, 0.92, 0.941))}
        >>> tradeoff_words(Tradeoff(modes, items=40, texts=60, best="all"))[0]
        "all gains most on held-out items, 0.400 nats a token (0.300 to 0.500), and keeps 93.1 % of the base model's \
answers on general text (92.0 to 94.1 %)."
    """
    if found.best is None:
        return _undecided(found, name)
    if found.best == BASE:
        return (f"No mode answers the held-out items better than {name(BASE)}, the base model, beyond noise.",)
    how = "most on held-out items"
    if above := [label for label in found.alike if found.gain(label) > found.gain(found.best)]:
        how = f"as much on held-out items as {_joined([name(label) for label in above])}, within noise"
    gain, kept = _nats(found.modes[found.best].gain), ""
    if found.texts >= FEWEST and found.modes[found.best].kept:
        kept = f", and keeps {_kept(found, found.best)}"
    most = f"gains {how}, {gain}{kept}."
    if found.keeper is None:
        rest = () if kept else ("What the modes keep of the base model was not measured.",)
        return (f"{name(found.best)} {most}", *rest)
    share = f"{100 * found.share:.0f} %"
    if found.share < HALF:
        more = f"{name(found.keeper)} keeps more, {_kept(found, found.keeper)}, with {share} of that gain."
        return (f"{name(found.best)} {most}", more)
    return (
        f"{name(found.keeper)} where the model shall stay closer to what it was: it keeps "
        f"{_kept(found, found.keeper)}, with {share} of the gain on held-out items.",
        f"{name(found.best)} for the trained task alone: it {most}",
    )


def keeping_words(found: Tradeoff, label: str, name: Name = str) -> tuple[str, ...]:
    """Says what one mode keeps, and recommends nothing; empty where that was not measured."""
    one = found.modes.get(label)
    return (f"{name(label)} keeps {_kept(found, label)}.",) if one and one.kept and label != BASE else ()


def tradeoff_rows(found: Tradeoff) -> list[list[str]]:
    """Returns the cells of the table, head first: by mode, what was measured, the differences with their intervals."""
    columns = {"mode": list(found.modes)}
    if found.items:
        columns["loss"] = ["" if one.loss is None else f"{one.loss:.3f}" for one in found.modes.values()]
        columns["gain"] = [_interval(one.gain, found.items, 1, "+.3f") for one in found.modes.values()]
    if found.texts:
        columns["keeps, %"] = [_interval(one.kept, found.texts, 100, ".1f") for one in found.modes.values()]
        columns["KL"] = ["" if one.divergence is None else format_nats(one.divergence) for one in found.modes.values()]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def tradeoff_note(found: Tradeoff) -> str:
    """Says what the columns of the table are."""
    parts = []
    if found.items:
        parts.append(
            f"loss: nats a token on {amount(found.items, 'held-out item')} of the training's data; gain: how much less "
            "that is than the base model's"
        )
    if found.texts:
        parts.append(
            f"keeps: the share of tokens of {amount(found.texts, 'general text')} before which the most likely next "
            "token is the base model's; KL: the divergence from it in nats a token"
        )
    said, counts = "; ".join(parts), [count for count in (found.items, found.texts) if count]
    ends = " With 95 % bootstrap intervals over items, paired for the gain." if max(counts) >= FEWEST else ""
    few = f" Fewer than {FEWEST} tell nothing about a difference." if min(counts) < FEWEST else ""
    return f"{said[:1].upper()}{said[1:]}.{ends}{few}"


def tradeoff_text(found: Tradeoff) -> str:
    """Lays out for a terminal what the modes gain and keep, and which one to use."""
    return "\n".join([aligned(tradeoff_rows(found)), "", tradeoff_note(found), "", *tradeoff_words(found)])


def _undecided(found: Tradeoff, name: Name) -> tuple[str, ...]:
    lines = [line for label in found.modes for line in keeping_words(found, label, name)]
    if not found.items:
        return (*lines, "No held-out items of the training show what the modes gain.")
    return (*lines, f"{amount(found.items, 'held-out item')} cannot tell which mode gains.")


def _kept(found: Tradeoff, label: str) -> str:
    kept = found.modes[label].kept
    if kept is None:
        return ""
    interval = f" ({100 * kept.low:.1f} to {100 * kept.high:.1f} %)" if found.texts >= FEWEST else ""
    return f"{100 * kept.value:.1f} % {_ANSWERS}{interval}"


def _nats(gain: Interval | None) -> str:
    return "" if gain is None else f"{gain.value:.3f} nats a token ({gain.low:.3f} to {gain.high:.3f})"


def _interval(found: Interval | None, items: int, scale: float, form: str) -> str:
    if found is None:
        return ""
    value, low, high = (f"{scale * one:{form}}" for one in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})" if items >= FEWEST and low != high else value  # the base keeps all


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
