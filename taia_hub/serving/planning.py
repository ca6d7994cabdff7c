"""From a TAIA repository and an engine to the commands that serve it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.shell import comment
from taia_hub.engines import Command, Engine, Order, ServedMode, find_engine, saved_dtype
from taia_hub.engines.order import given_word
from taia_hub.engines.parts import Part, Served
from taia_hub.errors import ConfigError, SettingError, short
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.serving.base_check import check_base
from taia_hub.serving.gguf import base_gguf, check_gguf
from taia_hub.serving.memory import memory_text
from taia_hub.serving.parts import cut_update, prepare_parts
from taia_hub.serving.preparing import Preparing, default_folder, prepare
from taia_hub.serving.tokenizing import served_tokenizer, tokenizer_note
from taia_hub.switch.modes import MODES, TUNED
from taia_hub.switch.settings import InferenceModules, Setting, parse_setting

_NAME = re.compile(r"\w[\w.-]*")
_LONGEST_NAME = 96  # as the Hub's names; folders are named by it, with the mode behind


@dataclass(frozen=True)
class ServingPlan:
    """What serves a repository.

    Attributes:
        engine: The engine.
        order: What it is asked for.
        commands: The commands in their order; the last one is the server.
        prepared: The `taia export` and `taia merge` commands that make the files of the modes by hand; of llama.cpp,
            the LoRAs that its own are made of.
        base: Folder of the base model, of which only the configuration need be on this disk.
        notes: What to know of it.
    """

    engine: Engine
    order: Order
    commands: tuple[Command, ...]
    prepared: tuple[str, ...]
    base: Path
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The names that requests use."""
        return self.engine.model_names(self.order)

    @property
    def url(self) -> str:
        """Where the API is."""
        host = f"[{self.order.host}]" if ":" in self.order.host else self.order.host  # of IPv6
        return f"http://{host}:{self.order.port}/v1"

    def check(self, alive: Callable[[], bool]) -> ConfigError | None:
        """Asks the started server for the base beside a mode, where the engine may mix them up; as `check_base`."""
        if not (self.engine.mixes_base and self.order.updates):
            return None
        none, lora = (self.engine.models(self.order.name, label) for label in ("none", self.order.updates[-1].label))
        key = given_word(self.order, "--api-key") or os.environ.get("VLLM_API_KEY")
        return check_base(self.url, none, lora, key=key, alive=alive)

    def text(self) -> str:
        """Returns the commands for a terminal, with comments that say what they are and what they need."""
        checked = "run" if self.engine.run_here else "checked against its sources, not run"
        lines = [
            comment(f"{self.engine.name}: commands for version {self.engine.version}, {checked}. {self.engine.docs}"),
            comment(f"Models: {', '.join(self.models)}"),
            *(comment(f"Made before: {command}") for command in self.prepared),
            *map(comment, self.notes),
            comment(memory_text(self.engine, self.order, self.commands[-1], self.base)),
        ]
        if self.order.nodes > 1:
            lines.append(comment("Every machine needs these files under the same path."))
        for command in self.commands:
            lines.append(comment(f"On {command.where}:") if command.where else "")
            lines.append(command.shell())
        return "\n".join(lines)


def plan_serving(
    repo: str | os.PathLike[str] | Repository,
    engine: str,
    modes: Sequence[InferenceModules] = (),
    *,
    name: str | None = None,
    revision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    gguf: str | os.PathLike[str] | None = None,
    extra: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    nodes: int = 1,
    head: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ServingPlan:
    """Prepares what an engine needs for each mode, and makes the commands that serve them.

    Args:
        repo: Hub id or folder of a TAIA repository, or of a PEFT adapter, or one that was opened.
        engine: `"vllm"`, `"sglang"`, `"llama.cpp"` or `"transformers"`.
        modes: What is served; by default the mode that the repository publishes. The base is served besides where it
            costs nothing. llama.cpp takes every setting in a request, whatever is given here: these modes are listed
            first, the update is cut so that each can be weighed, and they alone must be possible.
        name: Name of the model, without a mode; by default the last part of the repository's.
        revision: Revision of the repository.
        out: Folder for the prepared files; by default one in the Hub's cache. Files made before are used again.
        gguf: For llama.cpp the base model as GGUF: a file, `ORG/REPO/FILE.gguf` on the Hub, or the type that it is
            written in: `"float32"`, `"bfloat16"`, `"float16"` or `"q8_0"`; by default that of its weights.
        extra: Flags for the engine.
        host: Address to listen on; 0.0.0.0 is open to the network.
        port: Port to listen on.
        tensor_parallel: GPUs that each layer is cut over.
        data_parallel: Copies of the model.
        nodes: Machines.
        head: The first machine, where there are several.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run.
        progress: Called with the stage, what is done of it and what there is.

    Returns:
        The commands; nothing is started.

    Raises:
        ConfigError: If a value is not possible.
        SettingError: If a mode is not understood, masks everything, or comes twice.
        TAIAError: If the repository cannot be read, a mode cannot be exported or merged, or the base not written as
            GGUF.

    Example:
        ```python
        plan = plan_serving("org/model-taia", "vllm", ["attention", "all"])
        print(plan.text())
        ```
    """
    found, asked = find_engine(engine), tuple(map(parse_setting, modes))
    check_gguf(found, gguf)
    access = hub.HubAccess(token=token)
    files = repo if isinstance(repo, Repository) else open_repository(repo, access, revision=revision)
    files = files.with_weights(access)
    published = files.config.setting
    settings = _settings(asked, published)
    listed = _listed(found, settings, published)
    name = served_name(name, files.name)
    order = Order(
        name=name,
        base=files.base.name if files.base.revision else str(files.base.folder.absolute()),
        revision=files.base.revision,
        dtype=saved_dtype(hub.read_json(files.base.folder / hub.CONFIG)),
        modes=tuple(ServedMode(label, setting=setting) for label, setting in listed.items()),
        extra=tuple(extra),
        trust_remote_code=trust_remote_code,
        host=host,
        port=port,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        nodes=nodes,
        head=head,
    )
    found.check(order)  # before the work
    cut = model = None
    if found.needs == "gguf":
        wanted = tuple(settings.values()) or (published,)
        cut = cut_update(files, wanted, published, access=access, trust_remote_code=trust_remote_code)
        model = base_gguf(files.base, gguf, access=access, trust_remote_code=trust_remote_code, progress=progress)
        order = dataclasses.replace(order, gguf=model.path)
    folder = Path(out) if out is not None else default_folder(files, name)
    preparing = Preparing(files, found, name, folder.absolute(), model, token, trust_remote_code, progress)
    parts: tuple[Part, ...] = ()
    if cut is not None:
        parts = prepare_parts(preparing, cut)
        weighed = Served(name, {}, parts)
        given = {"", *settings}
        ready = tuple(mode for mode in order.modes if mode.label in given or weighed.takes(listed[mode.label]))
    else:
        ready = tuple(prepare(preparing, setting, label) for label, setting in listed.items())
    tokenizer = served_tokenizer(files, preparing.folder, access, trust_remote_code=trust_remote_code)
    serves_base = any(setting.name == "none" for setting in listed.values())
    at = preparing.models if found.needs == "merged" else preparing.folder
    order = dataclasses.replace(order, modes=ready, parts=parts, folder=at, tokenizer=tokenizer)
    made = [(part.label, part.setting) for part in parts if part.path] if parts else list(listed.items())
    by_hand = [preparing.by_hand(label, setting) for label, setting in made if setting.name != "none"]
    notes = list(found.notes(order))
    notes += [f"The update of '{one.label}' is not served: {one.refused}" for one in parts if one.refused]
    notes += filter(None, [tokenizer_note(found, tokenizer, serves_base=serves_base)])
    return ServingPlan(found, order, found.commands(order), tuple(by_hand), files.base.folder, tuple(notes))


def modes_or_published(modes: Sequence[InferenceModules], published: Setting) -> tuple[Setting, ...]:
    """Parses the modes that are asked for; none are the published one, by the name `tuned` where its own is too long.

    Raises:
        SettingError: If a mode is not understood.
    """
    by_default = published if published.label == published.whole_label else parse_setting(TUNED)
    return tuple(map(parse_setting, modes)) or (by_default,)


def _listed(engine: Engine, settings: Mapping[str, Setting], published: Setting) -> dict[str, Setting]:
    """Says which modes have names: label to setting, in their order; the model's name alone has an empty label."""
    if engine.needs == "gguf":
        return {**settings, "": published, **{mode: parse_setting(mode) for mode in MODES}}
    given = settings or _settings(modes_or_published((), published), published)
    return {**given, **({"none": parse_setting("none")} if engine.serves_base else {})}


def _settings(asked: Sequence[Setting], published: Setting) -> dict[str, Setting]:
    """Names the modes that are asked for: label to setting, `tuned` to what is published."""
    settings: dict[str, Setting] = {}
    for one in asked:
        setting = one.resolved(published)
        label = setting.slug if setting.name == "none" else one.slug
        if setting.name != "none" and not setting.acts:
            raise SettingError(
                f"The mode '{setting.label}' masks every update: it is the base model.", "Serve that as --mode none."
            )
        if label in settings or setting in settings.values():
            raise SettingError(f"The mode '{label}' comes twice.", "Give each mode once.")
        settings[label] = setting
    return settings


def served_name(name: str | None, repo: str) -> str:
    """Returns the name that a model is served by: the given one, or one made of the last part of a repository's.

    Raises:
        ConfigError: If it cannot be one.
    """
    if name is None:
        name = re.sub(r"[^\w.-]+", "-", Path(repo).absolute().name if os.path.isdir(repo) else repo.rpartition("/")[2])
        name = name.strip("-.")
    if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"The name {short(name)} cannot be the name of a served model.",
            f"Give --name of letters, digits, '_', '-' and '.', of at most {_LONGEST_NAME} bytes; the mode follows it "
            "after a colon.",
        )
    return name
