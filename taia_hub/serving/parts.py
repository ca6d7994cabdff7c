"""The GGUF LoRAs of a server that weighs them in each request: the update cut by role, a file a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from taia_hub import hub
from taia_hub.engines.parts import Module, Part, Served, split
from taia_hub.errors import SettingError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting.plan import acting_modules
from taia_hub.repository.opening import open_update
from taia_hub.repository.update_files import Repository
from taia_hub.serving.preparing import Preparing, prepare
from taia_hub.switch.settings import Setting


@dataclass(frozen=True)
class Cut:
    """An update cut into parts that have no files yet; those of which the label is `needed` must get one."""

    parts: tuple[Part, ...]
    needed: frozenset[str]

    def tried(self, work: Callable[[Part], Part]) -> Cut:
        """Works on each part; one that is not needed may say why it cannot be served, or change nothing."""

        def one(part: Part) -> Part:
            try:
                return part if part.refused else work(part)
            except SettingError:  # its modules are there, and change nothing
                return part
            except (UnsupportedUpdateError, UpdateMismatchError) as error:
                if part.label in self.needed:
                    raise
                return replace(part, refused=error.message)

        return replace(self, parts=tuple(map(one, self.parts)))


def cut_update(
    files: Repository,
    wanted: Sequence[Setting],
    published: Setting,
    *,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
) -> Cut:
    """Cuts an update into parts, so that all settings given can be weighed; nothing is written.

    Args:
        files: The repository.
        wanted: Settings that must be possible.
        published: The setting that the repository publishes.
        access: How the Hub is reached.
        trust_remote_code: Whether the base model's own code may run.

    Raises:
        TAIAError: If a part that a wanted setting asks for can be no LoRA.
    """
    update = open_update(files, access=access, trust_remote_code=trust_remote_code, lean=True)
    modules = (Module(one.path, one.role, one.layer, one.whole_only) for one in update.switch.sites)
    parts = split(modules, (*wanted, published))
    weighed = [zip(parts, Served("", {}, parts).weights(setting), strict=True) for setting in wanted]
    needed = frozenset(part.label for setting in weighed for part, weight in setting if weight)

    def check(part: Part) -> Part:
        acting_modules(update, part.setting)
        return part

    return Cut(parts, needed).tried(check)


def prepare_parts(preparing: Preparing, cut: Cut) -> tuple[Part, ...]:
    """Makes the file of each part, or finds the one that was made before.

    Raises:
        TAIAError: If one that is needed cannot be exported or does not fit the GGUF file, or cannot be written.
    """

    def make(part: Part) -> Part:
        mode = prepare(preparing, part.setting, part.label)
        return replace(part, path=mode.path, rank=mode.rank)

    return cut.tried(make).parts
