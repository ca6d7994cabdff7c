"""An analysis as text for a terminal."""

from __future__ import annotations

from taia_hub.common.text_tables import aligned
from taia_hub.results.analysis import Analysis, HiddenStates
from taia_hub.results.norms import UpdateAnalysis, UpdatePart
from taia_hub.switch.settings import mode_title

_HEAD = ["layer", "role", "modules", "parameters", "‖ΔW‖ F", "‖ΔW‖ 2", "eff. rank", "stable rank"]
_RELATIVE = ["F / base", "2 / base"]


def to_text(analysis: Analysis) -> str:
    """Lays an analysis out for a terminal: the update by role and by layer, then hidden states by mode."""
    subject = analysis.subject
    at = f" @ {subject.base_revision[:8]}" if subject.base_revision else ""
    head = f"{analysis.update.method} of {subject.name} on {subject.base_model}{at}"
    parts = [head, _update(analysis.update)]
    if analysis.hidden:
        parts.append(_hidden(analysis.hidden))
    return "\n\n".join(parts)


def _update(update: UpdateAnalysis) -> str:
    relative = update.is_relative
    rows = [_HEAD + (_RELATIVE if relative else [])]
    rows += [_row("all", role, part, relative) for role, part in update.by_role.items()]
    rows.append(_row("all", "all", update.total, relative))
    rows += [_row(str(layer), role, part, relative) for (layer, role), part in update.by_layer.items()]
    return "\n".join([aligned(rows, left=(1,)), *(f"Note: {note}" for note in update.notes)])


def _row(layer: str, role: str, part: UpdatePart, relative: bool) -> list[str]:
    cells = [layer, role, str(part.modules), f"{part.parameters:,}"]
    cells += [_number(part.frobenius), _number(part.spectral), _number(part.effective_rank), _number(part.stable_rank)]
    return cells + ([_number(part.relative_frobenius), _number(part.relative_spectral)] if relative else [])


def _hidden(hidden: HiddenStates) -> str:
    measures = (
        (f"Cosine similarity to the base model, mean over {hidden.tokens} tokens:", hidden.similarity),
        (f"Residual rank, mean over {hidden.texts} texts:", hidden.residual_rank),
    )
    blocks = []
    for title, curves in measures:
        by_layer = zip(*(curve.mean for curve in curves.values()), strict=True)
        rows = [[str(layer), *(f"{value:.5f}" for value in values)] for layer, values in enumerate(by_layer)]
        blocks.append(f"{title}\n{aligned([['layer', *map(mode_title, curves)], *rows], left=())}")
    return "\n\n".join([*blocks, "Layer 0: the embeddings."])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
