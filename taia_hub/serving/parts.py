"""The GGUF LoRAs of a server that weighs them in each request: the update cut by role, a file a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from taia_hub import hub
from taia_hub.engines.parts import Module, Part, Served, split
from taia_hub.errors import SettingError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting.plan import acting_modules
from taia_hub.repository.opening import open_update
from taia_hub.serving.preparing import Preparing, prepare
from taia_hub.switch.settings import Setting


def prepare_parts(preparing: Preparing, wanted: Sequence[Setting], published: Setting) -> tuple[Part, ...]:
    """Cuts an update into parts, and makes the file of each, or finds the one that was made before.

    A part that no wanted setting asks for may be one that llama.cpp cannot take: it says why, and has no file.

    Args:
        preparing: What the files are made from, and where they go.
        wanted: Settings that must be served; the update is cut by them and by the published one.
        published: The setting that the repository publishes.

    Raises:
        TAIAError: If a part that is wanted cannot be exported, or does not fit the GGUF file; what can be known is
            known before any part is exported.
    """
    access = hub.HubAccess(token=preparing.token)
    update = open_update(preparing.files, access=access, trust_remote_code=preparing.trust_remote_code, lean=True)
    sites = update.switch.sites
    parts = split((Module(one.path, one.role, one.layer, one.whole_only) for one in sites), (*wanted, published))
    whole = Served(preparing.name, {}, parts)
    needed = {
        part.label for setting in wanted for part, weight in zip(parts, whole.weights(setting), strict=True) if weight
    }

    def tried(part: Part, work: Callable[[Part], Part]) -> Part:
        try:
            return work(part)
        except SettingError:  # its modules are there, and change nothing
            return part
        except (UnsupportedUpdateError, UpdateMismatchError) as error:
            if part.label in needed:
                raise
            return replace(part, refused=error.message)

    def checked(part: Part) -> Part:
        acting_modules(update, part.setting)
        return part

    def made(part: Part) -> Part:
        mode = prepare(preparing, part.setting, part.label)
        return replace(part, path=mode.path, rank=mode.rank)

    known = [tried(part, checked) for part in parts]
    return tuple(part if part.refused else tried(part, made) for part in known)
