"""A tuning from end to end: read, search, report, choose; a killed one goes on where it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taia_hub.common.chat import embedding_rows
from taia_hub.common.devices import place
from taia_hub.common.environment import installed_versions
from taia_hub.common.progress import Progress
from taia_hub.evaluation.environment import identify
from taia_hub.results.identity import ModelIdentity
from taia_hub.results.tuning import Objective, Tuned
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.items import Side, make_sides
from taia_hub.tuning.keeping import Keeper
from taia_hub.tuning.options import BY, TuningOptions
from taia_hub.tuning.processes import Processes
from taia_hub.tuning.reading import Retain, Target, read_retain, read_target
from taia_hub.tuning.work import Asked, Work


def tune(
    model: Any,
    target: Target,
    retain: Retain = None,
    *,
    by: str | Sequence[str] = BY,
    objective: Objective = TuningOptions.objective,
    points: int = TuningOptions.points,
    budget: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    allow_extrapolation: bool = False,
    limit: int = TuningOptions.limit,
    max_length: int = TuningOptions.max_length,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **loading: Any,
) -> Tuned:
    """Finds how much of each part of an update to keep: what fits the target best for a given loss of the rest.

    The loss is differentiable in the weights of the switch, so that the search descends in target loss, first without
    a look at what is lost, then with less and less of the divergence from the base; base and update stay as they are.
    Items are split: the search sees one half, and on the other half every candidate is measured, with intervals by the
    paired bootstrap. The plain modes are candidates too: of them the best is what keeps the most among those that fit
    the target as well as the best, to within a tenth of what it gains. A tuned setting is chosen where it beats that
    one beyond noise, by intervals that hold for all tuned settings at once, and gives up no more than a tenth. Updates
    that act as a whole or not at all lose one group after the other instead. Several processes of `accelerate launch`
    share the items.

    Args:
        model: A loaded TAIA model, or the Hub id or folder of one.
        target: What to fit: a file or data set of items that `taia train` takes, conversations as lists of messages,
            or encoded items. None of them should have been trained on.
        retain: What shall not change: a file of texts or items, texts or conversations, or encoded items; by default
            the texts that are shipped with this package.
        by: Which modules share a weight: `"role x layer"`, `"role"`, `"layer"`, `"block:N"` for N neighbouring layers
            of a role, or selectors as a setting has them.
        objective: What counts as lost: `"kl"`, the divergence from the base, or `"loss"`, how much the loss grows.
        points: Number of points of the front that are searched.
        budget: Minutes that all of it may take, over all calls that go on with it in `out`; a call with more goes on.
        seed: Of the split, the order of the items and the bootstrap.
        out: Folder for `taia_tuning.json`; an interrupted search goes on there.
        overwrite: Whether a tuning of other inputs that lies in `out` is thrown away.
        allow_extrapolation: Whether weights in [-2, 2] are searched instead of those in [0, 1].
        limit: Most items a side; more are drawn from.
        max_length: Most tokens of an item; what is longer is cut off.
        tokenizer: The tokenizer; by default the repository's, or the base model's.
        progress: Called with `("search", done, total)` in steps, then with `("report", done, total)` in items.
        **loading: For a model that is given by name: `revision`, `dtype`, `device_map`, `token` and so on; it
            goes where there is a GPU, unless `device_map` says otherwise.

    Returns:
        The candidates, the front, and which setting to use.

    Raises:
        ConfigError: If items are wrong or fewer than 20 on a side, `by` names no modules, a loss is no number, the
            budget is too small for one step, or `out` holds a tuning of other inputs.
        SettingError: If the model is fused.
        RepositoryError: If a model, data set or file cannot be read or written.

    Example:
        ```python
        tuned = taia_hub.tune("org/model-taia", "my_items.jsonl", out="tuning")
        print(tuned)
        model.inference_modules = tuned.recommended.parsed
        ```
    """
    began = time.monotonic()
    TuningOptions(by, objective, points, budget, limit, max_length, seed, allow_extrapolation)
    processes = Processes.here()
    model = _loaded(model, loading)
    if tokenizer is None:
        from taia_hub.repository.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
    grouping = Grouping(model._taia_switch.sites, by)
    asked = Asked(grouping, objective, points, seed, allow_extrapolation, budget)
    sides = _sides(target, retain, model, tokenizer, max_length, limit, seed)
    identity = identify(model)
    inputs = _inputs(identity, asked, sides)
    keeper = Keeper.of(out, inputs, budget=budget, overwrite=overwrite, is_first=processes.rank == 0)
    processes.gather(None)  # every process has read what lies in `out` before the first writes
    if keeper.finished is not None:
        return keeper.finished
    work = Work(model, identity, asked, sides[0], sides[1], processes, progress, keeper, began)
    training = model.training
    model.eval()
    try:
        found = work.run()
    finally:
        model.train(training)
    tuned = dataclasses.replace(found, notes=(*sides[2], *found.notes))
    if processes.rank == 0:
        keeper.finish(tuned, budget=budget)
    processes.gather(None)
    return tuned


def _sides(
    target: Target, retain: Retain, model: Any, tokenizer: Any, max_length: int, limit: int, seed: int
) -> tuple[Side, Side, tuple[str, ...]]:
    return make_sides(
        read_target(target, tokenizer, most=4 * limit, seed=seed),
        read_retain(retain, model, tokenizer, max_length=max_length),
        tokenizer=tokenizer,
        vocabulary=embedding_rows(model),
        max_length=max_length,
        limit=limit,
        seed=seed,
    )


def _inputs(identity: ModelIdentity, asked: Asked, sides: tuple[Side, Side, tuple[str, ...]]) -> dict[str, Any]:
    """Names all that a result depends on, under the names that an error gives them."""
    known = ("adapter_sha256", "adapter_config_sha256", "base_model", "base_revision", "base_files", "dtype")
    return {
        "model": {name: getattr(identity, name) for name in known},
        "target items": sides[0].sha256,
        "retained texts": sides[1].sha256,
        "versions": installed_versions(),
        "options": asked.to_json(),
    }


def _loaded(model: Any, loading: dict[str, Any]) -> Any:
    from taia_hub.modeling_taia import load_given

    if not hasattr(model, "taia_config") and "device_map" not in loading:
        loading = {**loading, "device_map": place()}
    return load_given(model, loading)
