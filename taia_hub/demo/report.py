"""What the demo found: as text for a terminal and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taia_hub.demo.losses import MODES, DomainLosses
from taia_hub.results.statistics import Interval
from taia_hub.switch.modes import PAPER_NAMES

NAMES = {**PAPER_NAMES, "none": f"{PAPER_NAMES['none']} model"}
_PLAIN = ("model_id", "base", "steps", "tokens", "trained_domain", "prompt", "answers", "seconds", "versions")
_LONGEST, _OTHER_PROMPT = 120, "Why is the sky blue?"  # of a prompt that is to be typed
_ROW = "{:<14}" + "{:<16}" * len(MODES)


@dataclass(frozen=True)
class DemoReport:
    """What the demo made and measured.

    Attributes:
        folder: The demo's folder.
        model_id: Hub id of the published TAIA repository, on the Hub in the folder.
        base: The base model.
        data: What it was trained on.
        steps: Training steps of its adapter.
        tokens: Tokens that were trained on.
        trained_domain: The domain it was trained on.
        domains: The losses, a domain each.
        prompt: A question.
        answers: Mode to its answer to the question.
        seconds: Stage to the wall-clock seconds it took.
        versions: Package to its version.
    """

    folder: Path
    model_id: str
    base: str
    data: Sequence[str]
    steps: int
    tokens: int
    trained_domain: str
    domains: Sequence[DomainLosses]
    prompt: str
    answers: Mapping[str, str]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def pages(self) -> dict[str, Path]:
        """The files of the report for people: ending to file."""
        return {ending: self.folder / f"report.{ending}" for ending in ("html", "md", "png", "svg")}

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values; `from_json` reads them.

        Example:
            >>> report.to_json()["domains"][0]["losses"]["none"]  # doctest: +SKIP
            {'value': 2.44, 'low': 2.31, 'high': 2.57}
        """
        domains = [
            {
                "domain": one.domain,
                "items": one.items,
                "losses": {mode: asdict(interval) for mode, interval in one.losses.items()},
                "differences": [
                    {"mode": mode, "reference": reference, **asdict(interval)}
                    for (mode, reference), interval in one.differences.items()
                ],
            }
            for one in self.domains
        ]
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "folder": str(self.folder),
            "data": list(self.data),
            "domains": domains,
            "conclusions": conclusions(self.domains, self.trained_domain),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DemoReport:
        """Reads what `to_json` wrote; KeyError if a value is missing."""
        domains = []
        for one in values["domains"]:
            losses = {mode: Interval(**interval) for mode, interval in one["losses"].items()}
            differences = {
                (each["mode"], each["reference"]): Interval(each["value"], each["low"], each["high"])
                for each in one["differences"]
            }
            domains.append(DomainLosses(one["domain"], one["items"], losses, differences))
        folder, data = Path(values["folder"]), tuple(values["data"])
        return cls(folder=folder, data=data, domains=domains, **{name: values[name] for name in _PLAIN})

    def to_text(self) -> str:
        """Returns the report for a terminal of 80 columns: table, conclusions, answers and what to type next.

        Example:
            >>> print(report.to_text())  # doctest: +SKIP
            Loss on held-out answers, in nats per answer token; lower is better.
            ...
        """
        answers = [f"[{mode}] {NAMES[mode]}\n{text}\n" for mode, text in self.answers.items()]
        commands = "\n".join(f"  {command}" for command in self.next_commands())
        parts = [
            table_text(self.domains, self.trained_domain),
            "\n".join(conclusions(self.domains, self.trained_domain)),
            f'"{self.prompt}"\n\n' + "\n".join(answers).rstrip(),
            self.took(),
            f"The same as a page, with a figure: {self.pages['html']} (and .md, .png, .svg)",
            f"What to type next: the modes in the browser, in the terminal, and one as a plain LoRA.\n\n{commands}",
        ]
        return "\n\n".join(parts)

    def took(self) -> str:
        """Says how long the stages took, in a sentence."""
        took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())
        return f"Took {sum(self.seconds.values()) / 60:.1f} minutes ({took})."

    def next_commands(self) -> tuple[str, str, str]:
        """Returns three commands for a shell in the folder that the demo was started in."""
        model, attention = (shlex.quote(str(self.folder / name)) for name in ("model", "attention"))
        prompt = self.prompt if len(self.prompt) <= _LONGEST and self.prompt.isprintable() else _OTHER_PROMPT
        return (
            f"taia compare {model} --ui",
            f"taia compare {model} --prompt {shlex.quote(prompt)} --against none",
            f"taia export {model} --mode attention --out {attention}",
        )


def table_text(domains: Sequence[DomainLosses], trained_domain: str) -> str:
    """Renders losses and differences in lines of at most 80 characters; a star marks the lowest loss of a domain.

    Example:
        >>> print(table_text(report.domains, "medical"))  # doctest: +SKIP
    """
    lines = [
        "Loss on held-out answers, in nats per answer token; lower is better, * lowest.",
        "Second lines: 95 % interval (bootstrap over the items).",
        "",
        _ROW.format("", *MODES).rstrip(),
        _ROW.format("", *(NAMES[mode] for mode in MODES)).rstrip(),
    ]
    for one in domains:
        trained = ", trained on this domain" if one.domain == trained_domain else ""
        lowest = _lowest(one)
        losses = [one.losses[mode] for mode in MODES]
        changes = [one.differences.get((mode, "none")) for mode in MODES]
        marks = ["*" if mode == lowest else "" for mode in MODES]
        lines += [
            f"\n{one.domain} ({one.items} items{trained})",
            _ROW.format("  loss", *(f"{loss.value:.3f}{mark}" for loss, mark in zip(losses, marks, strict=True))),
            _ROW.format("", *(f"{loss.low:.3f}..{loss.high:.3f}" for loss in losses)),
            _ROW.format("  less base", *(f"{change.value:+.3f}" if change else "" for change in changes)),
            _ROW.format("", *(f"{change.low:+.3f}..{change.high:+.3f}" if change else "" for change in changes)),
        ]
    return "\n".join(line.rstrip() for line in lines)


def conclusions(domains: Sequence[DomainLosses], trained_domain: str) -> list[str]:
    """Says in sentences what the numbers show, and nothing that their intervals do not.

    A sentence a domain comes first, then what TAIA gained, or that the numbers do not tell. StopIteration if the
    trained domain is not among the domains.

    Example:
        >>> conclusions(report.domains, "medical")[1]  # doctest: +SKIP
        'maths: against the base model, attention is better by 0.045, ffn shows no clear change, all is worse by ...'
    """
    lines = []
    for one in domains:
        told = ", ".join(f"{mode} {_verdict(one.differences[mode, 'none'])}" for mode in MODES if mode != "none")
        lines.append(f"{one.domain}: against the base model, {told}. Lowest: {_lowest(one)}.")
    trained = next(one for one in domains if one.domain == trained_domain)
    others = [one for one in domains if one.domain != trained_domain]
    harmed = [one for one in others if one.differences["all", "none"].low > 0]
    repaired = [one.domain for one in harmed if one.differences["attention", "all"].high < 0]
    gain, kept = (trained.differences[mode, "none"] for mode in ("all", "attention"))
    if not (repaired and gain.high < 0 and kept.high < 0):
        lines.append(f"At these steps the intervals do not show what TAIA is for: {_missing(harmed, gain, kept)}.")
        return lines
    share = min(1.0, kept.value / gain.value)
    unharmed = all(one.differences["attention", "none"].low <= 0 for one in others)
    lines.append(
        f"What TAIA is for: the whole update (all) paid for {trained_domain} with {' and '.join(repaired)}. "
        f"Without its feed-forward part (attention) the model keeps {share:.0%} of the gain on "
        f"{trained_domain} and does better on {' and '.join(repaired)}"
        + (", with no clear loss in any domain." if unharmed else ".")
    )
    lower = [one.domain for one in harmed if one.domain in repaired and _lowest(one) == "ffn"]
    if lower:
        lines.append(f"Here ffn (TAIF) is lower still on {' and '.join(lower)}: which part to keep is worth measuring.")
    return lines


def _missing(harmed: Sequence[DomainLosses], gain: Interval, kept: Interval) -> str:
    if gain.high >= 0 or kept.high >= 0:
        return "the training brought no clear gain in its own domain"
    if not harmed:
        return "the whole update (all) is not clearly worse than the base model in any other domain"
    return "attention is not clearly better than all where all is worse than the base model"


def _lowest(one: DomainLosses) -> str:
    return min(MODES, key=lambda mode: one.losses[mode].value)


def _verdict(change: Interval) -> str:
    if change.low > 0:
        return f"is worse by {change.value:.3f}"
    if change.high < 0:
        return f"is better by {-change.value:.3f}"
    return "shows no clear change"
