"""From an update and a setting to a plain PEFT LoRA that serving engines take."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import MADE, Made, digest
from taia_hub.engines import check_engines
from taia_hub.errors import ConfigError, SettingError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting.assembly import (
    adapter_config,
    base_facts,
    is_kept,
    notes_on,
    planned_tensors,
    stays_exact,
)
from taia_hub.exporting.card import export_card, index_card
from taia_hub.exporting.low_rank import EXACT, convert
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.plan import (
    ActingModule,
    Factors,
    acting_modules,
    factor_names,
    find_targets,
    share_scale,
)
from taia_hub.exporting.report import ExportReport
from taia_hub.exporting.verification import TOLERANCE, check_loads, compare_outputs
from taia_hub.exporting.writing import new_folder, write_tensors
from taia_hub.hub.layout import PEFT
from taia_hub.repository.opening import OpenedUpdate, open_update
from taia_hub.repository.reading import base_license, check_publishable
from taia_hub.repository.side_files import keep_edits
from taia_hub.repository.update_files import Repository
from taia_hub.switch.settings import InferenceModules, Setting, parse_setting
from taia_hub.updates.peft.plain_lora import LeanLora
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.weights.checkpoint import StoredTensor, read_header
from taia_hub.weights.skeleton import skeleton

_NAME = re.compile(r"\w[\w.+-]*")


def export_adapter(
    source: str | os.PathLike[str] | Repository,
    out: str | os.PathLike[str],
    inference_modules: InferenceModules = "attention",
    *,
    revision: str | None = None,
    rank: int | None = None,
    max_error: float = 0.02,
    verify: bool = False,
    engines: Sequence[str] = (),
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes what a setting computes as a plain PEFT LoRA, which vLLM, SGLang, TGI, LoRAX, llama.cpp and PEFT load.

    From files alone: the roles come from the base model's configuration, and tensors go from one file to the other one
    at a time. LoRA pairs keep their bytes where all of them have one rank and one scale that `lora_alpha` can say;
    elsewhere scales and weights are multiplied into `lora_B`. Other methods become LoRA pairs by singular value
    decomposition. What is written is held against what PEFT expects on this base (its own rule for the modules, its own
    layer on one module of each kind): no key is missing or left over. The folder is written whole or not at all.

    Args:
        source: Hub id or folder of a TAIA repository, or of a plain PEFT adapter; or `Repository`.
        out: A new or empty folder for `adapter_config.json`, `adapter_model.safetensors` and `README.md`.
        inference_modules: The setting: a mode name, roles joined by `+`, or a mapping of selectors to weights.
        revision: Revision of the source.
        rank: Largest rank of updates that are no LoRA; by default the smallest exact one where it pays, else 64.
        max_error: Largest relative error, by the Frobenius norm, of a module that is no LoRA.
        verify: Whether to load the base model and compare the export's output with the masked model's.
        engines: Names of engines that must take the export.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run.
        progress: Called with the stage, what is done of it and what there is.

    Returns:
        What was written, what was lost, and what each engine needs.

    Raises:
        SettingError: If the setting masks every update, or all that change anything, or is not possible on this one.
        UnsupportedUpdateError: If an acting update cannot be a plain LoRA, loses more than `max_error`, or an engine of
            `engines` would refuse it.
        RepositoryError: If files are missing or damaged, `out` is not empty, or the disk is full.
        UpdateMismatchError: If the export does not load, or answers otherwise than the masked model.

    Example:
        ```python
        report = export_adapter("org/model-taia", "attention-lora", "attention")
        report.engines["vllm"]  # ('--max-lora-rank 64',)
        ```
    """
    options = ExportOptions(rank, max_error, verify, tuple(engines), token, trust_remote_code, progress)
    return export_adapters(source, out, {"": inference_modules}, options, revision=revision)[""]


def export_adapters(
    source: str | os.PathLike[str] | Repository,
    out: str | os.PathLike[str],
    settings: Mapping[str, Any],
    options: ExportOptions | None = None,
    *,
    revision: str | None = None,
    repo_ids: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> dict[str, ExportReport]:
    """Writes several settings, each into a sub-folder: all of them or none; otherwise as `export_adapter`.

    Args:
        source: As of `export_adapter`.
        out: A new or empty folder; where this very export lies there, nothing is done.
        settings: Name of a sub-folder to the setting that goes there; an empty name is `out` itself.
        options: How they are exported; the keywords of `export_adapter`.
        revision: Revision of the source.
        repo_ids: Name of each sub-folder to the Hub id that it is meant for; the cards then show them.
        overwrite: Whether another result of this package in `out` is replaced, when the new one is whole.

    Returns:
        Name of each sub-folder to its report.

    Raises:
        TAIAError: As of `export_adapter`; nothing is left of any setting.

    Example:
        ```python
        export_adapters("org/model-taia", "exports", {"attention": "attention", "all": "all"})
        ```
    """
    asked, out = options or ExportOptions(), Path(out).absolute()
    parsed = {name: parse_setting(value) for name, value in settings.items()}
    _check_names(parsed)
    out = out.resolve()  # a link to a folder stays one
    if not (out / MADE).is_file():
        Made(out, {}).check_free()
    update = open_update(source, revision=revision, lean=True, **asked.remote)
    update.files.check_outside(out)
    parsed = {name: one.resolved(update.config.setting) for name, one in parsed.items()}
    cards = {hub.CARD, *(PurePosixPath(name, hub.CARD).as_posix() for name in parsed)}
    wanted = {"command": "export", "repo": repo_ids, "from": _made_of(update, parsed, asked)}
    made = Made(out, wanted, cards, keep_edits)
    if facts := made.facts():
        return {name: ExportReport.of(values, out / name) for name, values in facts["reports"].items()}
    made.check_free(overwrite=overwrite)
    licence = {}
    if repo_ids is not None:
        check_publishable(update.config)
        licence = base_license(update.config, asked.token)
    acting = {name: acting_modules(update, setting) for name, setting in parsed.items()}
    model = update.model  # the base as it is, unless PEFT's layers are in it
    if not isinstance(update.update, LeanLora):
        model = skeleton(update.base, asked.access, asked.trust_remote_code, features_only=update.files.features_only)
    reports = {}
    with new_folder(made, overwrite=overwrite) as (scratch, facts):
        for name, setting in parsed.items():
            folder = scratch / name
            folder.mkdir(exist_ok=True)
            report = _write(update, model, acting[name], setting, folder, asked)
            _check_engines(report, asked.engines)
            if asked.verify:
                report = _verified(report, update, setting, asked)
            place = repo_ids[name] if repo_ids else f"{out.name}/{name}".rstrip("/")
            others = {parsed[one].label: other for one, other in (repo_ids or {}).items() if one != name}
            (folder / hub.CARD).write_text(export_card(report, update, place, licence, others), encoding="utf-8")
            reports[name] = replace(report, folder=out / name)
        if "" not in reports:
            card = index_card(reports, update, out.name)
            (scratch / hub.CARD).write_text(card, encoding="utf-8")
        facts["reports"] = {name: report.to_facts() for name, report in reports.items()}
    return reports


def _made_of(update: OpenedUpdate, settings: Mapping[str, Setting], options: ExportOptions) -> str:
    """Names all that exports depend on."""
    return digest(
        {
            **update.print,
            "settings": {name: setting.whole_label for name, setting in settings.items()},
            "options": [options.rank, options.max_error, options.verify, options.engines],
        }
    )


def _write(
    update: OpenedUpdate,
    model: nn.Module,
    acting: Sequence[ActingModule],
    setting: Setting,
    folder: Path,
    options: ExportOptions,
) -> ExportReport:
    """Writes configuration and weights of one setting, and checks that PEFT loads them."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pairs, converted, errors = _factors(update, acting, setting, Path(scratch), options)
        parts = (*pairs, *converted)
        scale, targets = share_scale(parts), find_targets(model, parts)
        is_exact = stays_exact(parts, scale)
        tensors = list(planned_tensors(parts, scale, targets, None if is_exact else torch.float32))
        size = write_tensors(folder / PEFT.weights, tensors, options.advance("writing"))
    config = adapter_config(update, model, parts, scale, targets)
    (folder / PEFT.config).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    check_loads(folder, model)
    error = max(errors.values(), default=0.0)
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in tensors})
    return ExportReport(
        folder=folder,
        setting=setting.value,
        modules=dict(Counter(part.role for part in parts)),
        zeros=len(targets.zeros),
        rank=scale.rank,
        alpha=scale.alpha,
        bytes=size,
        dtype=", ".join(dtypes),
        kept=is_kept(parts, scale) and not converted,
        error=error if error > EXACT else None,
        errors=errors,
        verdicts=check_engines(config, {one.name: one.shape for one in tensors}, base_facts(model, update)),
        notes=tuple(notes_on(update, parts, scale, targets, is_exact)),
    )


def _factors(
    update: OpenedUpdate, acting: Sequence[ActingModule], setting: Setting, scratch: Path, options: ExportOptions
) -> tuple[tuple[Factors, ...], tuple[Factors, ...], dict[str, float]]:
    """Returns the acting LoRA pairs, those made of other updates, and what these lose; refuses too much of it."""
    converted, errors = convert(update, acting, scratch, options)
    too_large = {path: error for path, error in errors.items() if error > max(options.max_error, EXACT)}
    if too_large:
        worst = max(too_large, key=lambda path: too_large[path])
        raise UnsupportedUpdateError(
            f"As a LoRA of rank {max(part.rank for part in converted)}, {len(too_large)} of {len(errors)} modules lose "
            f"more than {options.max_error:g} of their update (relative Frobenius norm), most '{worst}' with "
            f"{too_large[worst]:.3g}.",
            "The exact way out is `taia merge`, which writes the setting into a whole model; or give a larger --rank, "
            "or a larger --max-error.",
        )
    pairs = tuple(_pairs(update, acting))
    if not pairs and not converted:
        raise SettingError(
            f"Under the setting '{setting.label}' the update adds nothing but zeros, so that there is nothing to "
            "export: it is the base model.",
            f"Serve '{update.base.name}' itself.",
        )
    return pairs, tuple(converted), errors


def _pairs(update: OpenedUpdate, acting: Sequence[ActingModule]) -> Iterator[Factors]:
    """Yields the acting LoRA pairs, which stay in their file where the update does."""
    stored = read_header(update.folder / update.kind.weights) if any(one.is_plain for one in acting) else {}
    for one in acting:
        if not one.is_plain:
            continue
        name, site, layer = one.entry
        is_embedding = isinstance(layer.get_base_layer(), nn.Embedding)
        names = factor_names(name, is_embedding)
        pair: list[StoredTensor | Tensor]
        if update.streamed and all(key in stored for key in names):
            pair = [stored[key] for key in names]
        elif is_embedding:
            pair = [layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]]
        else:
            pair = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
        yield Factors(site.path, site.role, layer.scaling[ADAPTER] * one.weight, pair[0], pair[1], is_embedding)


def _check_names(names: Collection[str]) -> None:
    """Refuses names of sub-folders that are none, or could lead elsewhere, and no name at all."""
    if not names:
        raise ConfigError("No setting was given.", "Name at least one, as in {'': 'attention'}.")
    for name in names:
        if name and not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name {name!r} cannot be that of a sub-folder.",
                "Use letters, digits, '_', '-', '+' and '.', or '' for the folder itself.",
            )


def _check_engines(report: ExportReport, engines: Sequence[str]) -> None:
    for engine in engines:
        if problems := report.verdicts[engine].problems:
            raise UnsupportedUpdateError(
                f"{engine} does not take this export: {'; '.join(problems)}.",
                "Choose another mode or engine, or write the setting into a whole model with `taia merge`.",
            )


def _verified(report: ExportReport, update: OpenedUpdate, setting: Setting, options: ExportOptions) -> ExportReport:
    difference = compare_outputs(update, report.folder, setting, kept=report.kept, **options.remote)
    if report.kept:
        bound, said = 0.0, "bit for bit"
    else:
        bound, said = TOLERANCE, f"within {TOLERANCE:g} of the largest logit"
    if report.error is not None:
        note = f"Verified: its logits differ from the masked model's by at most {difference:.2g} of the largest logit."
    elif math.isnan(difference):
        raise UpdateMismatchError(
            "Logits of the masked model or of its export are not finite, so that the two cannot be compared.",
            "Look for NaN in the update's tensors; nothing was written.",
        )
    elif difference > bound:
        raise UpdateMismatchError(
            f"The export answers otherwise than the masked model: its logits differ by {difference:.3g} of the largest "
            f"logit; they must agree {said}.",
            "Nothing was written. Report this with the update's adapter_config.json.",
        )
    else:
        note = f"Verified: its logits in PEFT are those of the masked model, {said}."
    return replace(report, notes=(*report.notes, note))
