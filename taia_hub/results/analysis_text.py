"""An analysis as text for a terminal."""

from __future__ import annotations

from taia_hub.common.shown import text_of
from taia_hub.common.text_tables import aligned
from taia_hub.results.analysis import Analysis, HiddenStates
from taia_hub.results.norms import UpdateAnalysis, UpdatePart
from taia_hub.switch.modes import mode_title

_HEAD = ["layer", "role", "modules", "parameters", "‖ΔW‖ F", "‖ΔW‖ 2", "eff. rank", "stable rank"]
_RELATIVE = ["F / base", "2 / base"]
_COLUMNS = (
    "‖ΔW‖ F: how large the update is, over all its entries (Frobenius norm).",
    "‖ΔW‖ 2: how far it stretches one direction at most (spectral norm).",
    "eff. rank: how many directions it uses, each by its weight; at most the rank of its factors.",
    "stable rank: how many directions are as strong as the strongest; near 1, one direction does it all.",
    "F / base, 2 / base: the same norms as parts of those of the base's weights.",
)


@text_of.register
def to_text(analysis: Analysis) -> str:
    """Lays an analysis out for a terminal: the update by role and by layer, then hidden states by mode."""
    subject = analysis.subject
    at = f" @ {subject.base_revision[:8]}" if subject.base_revision else ""
    head = f"{analysis.update.method} of {subject.name} on {subject.base_model}{at}"
    parts = [head, _update(analysis.update)]
    if analysis.hidden:
        parts.append(_hidden(analysis.hidden))
    return "\n\n".join([*parts, conclusion(analysis)])


def conclusion(analysis: Analysis) -> str:
    """Says in a sentence or two what the numbers tell of this update: where it is, and what its modes do."""
    roles = {role: part for role, part in analysis.update.by_role.items() if part.frobenius}
    whole = sum((part.frobenius or 0) ** 2 for part in roles.values())
    said = "No module of the update has a norm: it was not measured, or it changes nothing."
    if whole:
        shares = {role: (part.frobenius or 0) ** 2 / whole for role, part in roles.items()}
        told = ", ".join(f"{share:.0%} in {role}" for role, share in sorted(shares.items(), key=lambda one: -one[1]))
        kept = f"mode attention keeps {shares.get('attention', 0):.0%} of it, mode ffn {shares.get('ffn', 0):.0%}"
        said = f"By squared norm the update is {told}: {kept}."
    if analysis.hidden and analysis.hidden.similarity:
        last = {mode: curve.mean[-1] for mode, curve in analysis.hidden.similarity.items() if mode != "none"}
        if len(last) > 1:
            near, far = max(last, key=lambda one: last[one]), min(last, key=lambda one: last[one])
            said += (
                f" At the last layer mode {near} stays nearest to the base model (cosine {last[near]:.4f}), "
                f"mode {far} goes farthest ({last[far]:.4f})."
            )
    return said


def _update(update: UpdateAnalysis) -> str:
    relative = update.is_relative
    rows = [_HEAD + (_RELATIVE if relative else [])]
    rows += [_row("all", role, part, relative) for role, part in update.by_role.items()]
    rows.append(_row("all", "all", update.total, relative))
    rows += [_row(str(layer), role, part, relative) for (layer, role), part in update.by_layer.items()]
    told = [line for line in _COLUMNS if relative or not line.startswith("F / base")]
    return "\n".join([aligned(rows, left=(1,)), "", *told, *(f"Note: {note}" for note in update.notes)])


def _row(layer: str, role: str, part: UpdatePart, relative: bool) -> list[str]:
    cells = [layer, role, str(part.modules), f"{part.parameters:,}"]
    cells += [_number(part.frobenius), _number(part.spectral), _number(part.effective_rank), _number(part.stable_rank)]
    return cells + ([_number(part.relative_frobenius), _number(part.relative_spectral)] if relative else [])


def _hidden(hidden: HiddenStates) -> str:
    measures = (
        (f"Cosine similarity to the base model, mean over {hidden.tokens} tokens:", hidden.similarity),
        (
            f"Residual rank (what one direction cannot explain of a text), mean over {hidden.texts} texts:",
            hidden.residual_rank,
        ),
    )
    blocks = []
    for title, curves in measures:
        by_layer = zip(*(curve.mean for curve in curves.values()), strict=True)
        rows = [[str(layer), *(f"{value:.5f}" for value in values)] for layer, values in enumerate(by_layer)]
        blocks.append(f"{title}\n{aligned([['layer', *map(mode_title, curves)], *rows], left=())}")
    return "\n\n".join([*blocks, "Layer 0: the embeddings."])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
