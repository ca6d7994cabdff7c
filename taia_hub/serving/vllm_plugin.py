"""vLLM's plug-in: a request for `org/model-taia:attention` makes the LoRA of that mode, and vLLM loads it.

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its processes; what makes a LoRA
is imported by the first request that needs one. A name is what `taia serve` takes as a repository, and a mode:
`REPO:MODE`, or `REPO` for the mode that it publishes. REPO is a Hub id, or a folder below the one that
`VLLM_LORA_RESOLVER_CACHE_DIR` names; no other path of a request is looked at. Where
`VLLM_LORA_RESOLVER_HF_REPO_LIST` is set, only the Hub ids in it are served.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_hub.errors import ConfigError, RepositoryError, TAIAError

if TYPE_CHECKING:
    from taia_hub.engines import ServedMode
    from taia_hub.hub import Source
    from taia_hub.serving.preparing import Preparing

logger = logging.getLogger(__name__)

ROOT, REPOS = "VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST"
"""vLLM's own variables for its resolvers: a folder of adapters, and the repositories that may be loaded."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_ALONE = threading.Lock()  # exports build models without weights, which patches torch for the whole process


def register() -> None:
    """Tells vLLM of the resolver; where that is not possible it says so, and vLLM goes on without."""
    try:
        from vllm.exceptions import GracefulHTTPError  # noqa: F401 - what is needed later is asked for now
        from vllm.lora.request import LoRARequest  # noqa: F401
        from vllm.lora.resolver import LoRAResolverRegistry
    except ImportError as error:
        logger.warning("taia-hub resolves no names: made for vLLM 0.32, it misses a part of this one (%s).", error)
        return
    resolver = TAIAResolver()
    LoRAResolverRegistry.register_resolver("taia", resolver)
    LoRAResolverRegistry.register_resolver("taia, where vLLM refused", _Refused(resolver))


@dataclass
class TAIAResolver:
    """Makes LoRAs of names; vLLM's `LoRAResolver`.

    Attributes:
        made: Name to the LoRA that vLLM was given for it.
    """

    made: dict[str, ServedMode] = field(default_factory=dict)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Makes the LoRA of a name, or finds the one made before, while vLLM goes on.

        Returns:
            The request that vLLM loads it by; None for a name that is not meant for this resolver.

        Raises:
            GracefulHTTPError: If there is none; vLLM answers with its text and status.
        """
        from vllm.exceptions import GracefulHTTPError
        from vllm.lora.request import LoRARequest

        repo, colon, mode = lora_name.partition(":")
        if not colon and not _HUB_ID.fullmatch(repo) and _below_root(repo) is None:
            return None
        try:
            made = await asyncio.to_thread(make_lora, repo, mode if colon else None, base_model_name)
        except TAIAError as error:
            raise GracefulHTTPError(str(error), _status(error)) from error
        self.made[lora_name] = made
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(made.path))  # vLLM numbers it itself


@dataclass(frozen=True)
class _Refused:
    """Is asked after `TAIAResolver`, where vLLM did not load what that one returned, and says why that may be."""

    resolver: TAIAResolver

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> None:
        from vllm.exceptions import GracefulHTTPError

        from taia_hub.engines import vllm_rank

        if made := self.resolver.made.get(lora_name):
            raise GracefulHTTPError(
                f"vLLM did not load the LoRA of '{lora_name}', which has rank {made.rank}; its log says why.\n"
                f"Where it was started with a smaller --max-lora-rank, start it with --max-lora-rank "
                f"{vllm_rank(made.rank)}.",
                HTTPStatus.BAD_REQUEST,
            )


def make_lora(repo: str, mode: str | None, served: str) -> ServedMode:
    """Makes the LoRA of a mode, or finds it in the Hub's cache.

    Args:
        repo: Name of the repository in a request.
        mode: The mode as a request writes it: a name, or a JSON mapping; None for the one that is published.
        served: The base model as vLLM was started with it.

    Returns:
        The folder of the LoRA; of mode `none` one of zeros, since vLLM's CPU backend answers a request for the base
        itself with another request's LoRA once every slot is taken.

    Raises:
        TAIAError: If there is no such repository or mode, it belongs to another base, or vLLM cannot take it.
    """
    from taia_hub import hub
    from taia_hub.engines import ENGINES
    from taia_hub.repository.update_files import open_repository
    from taia_hub.serving.planning import served_name
    from taia_hub.serving.preparing import Preparing, default_folder, prepare
    from taia_hub.switch.settings import parse_text

    setting = None if mode is None else parse_text(mode)
    access = hub.HubAccess()
    files = open_repository(_place(repo), access)
    _check_base(repo, files.base, served)
    setting = files.config.setting if setting is None else setting.resolved(files.config.setting)
    is_base = not setting.acts
    if is_base:
        setting = files.config.setting if files.config.setting.acts else parse_text("all")
    files = files.with_weights(access)
    name = served_name(None, files.name)
    preparing = Preparing(files, ENGINES["vllm"], name, default_folder(files, name).absolute())
    with _ALONE:
        made = prepare(preparing, setting)
        return _nothing(preparing, made) if is_base else made


def _place(repo: str) -> str:
    """Returns the folder or Hub id that a request may name; the folder of an adapter may follow after `@`."""
    if (folder := _below_root(repo)) is not None:
        return str(folder)
    name, allowed = repo.partition("@")[0], os.environ.get(REPOS)
    if not _HUB_ID.fullmatch(name) or os.path.isdir(name):  # a folder would be taken for the repository
        where = f"below '{os.environ[ROOT]}'" if os.environ.get(ROOT) else f"where {ROOT} allows one (it is not set)"
        raise RepositoryError(f"'{repo}' is neither a Hub id nor a folder {where}.", "Write org/model-taia:attention.")
    if allowed and name not in [one.strip() for one in allowed.split(",")]:
        raise RepositoryError(f"'{name}' is not served here.", f"The operator names what is in {REPOS}.")
    return repo


def _below_root(name: str) -> Path | None:
    root = os.environ.get(ROOT)
    if not root or not name or os.path.isabs(name) or {"", ".", ".."} & set(re.split(r"[/\\]", name)):
        return None
    folder = Path(root, name)
    return folder.absolute() if os.path.isdir(folder) else None  # False, too, of what no path can be


def _check_base(repo: str, base: Source, served: str) -> None:
    """Refuses an update of another base than vLLM's, which may be named by the folder of its commit in the cache."""
    if base.revision and served == base.name:
        return
    if os.path.isdir(served) and os.path.samefile(served, base.folder):
        return
    at = f" --revision {base.revision}" if base.revision else ""
    raise ConfigError(
        f"'{repo}' is an update of '{base.name}', and the base model served here is '{served}'.",
        f"Start another server for it: vllm serve {base.name}{at} --enable-lora.",
    )


def _nothing(preparing: Preparing, like: ServedMode) -> ServedMode:
    """Makes the LoRA of mode `none` beside another, whose first pair it has as zeros: vLLM takes none without any."""
    import shutil

    import torch
    from safetensors.torch import save_file

    from taia_hub import hub
    from taia_hub.engines import ServedMode
    from taia_hub.serving.preparing import kept

    assert like.path is not None
    made, folder = like.path, preparing.place("none")

    def write(new: Path) -> int:
        shapes = hub.tensor_shapes(made / hub.ADAPTER_WEIGHTS)
        first = min(shapes).partition(".lora_")[0] + ".lora_"
        zeros = {name: torch.zeros(shape) for name, shape in shapes.items() if name.startswith(first)}
        save_file(zeros, new / hub.ADAPTER_WEIGHTS)
        shutil.copyfile(made / hub.ADAPTER_CONFIG, new / hub.ADAPTER_CONFIG)
        return like.rank

    with preparing.sole():
        return ServedMode("none", folder, kept(folder, None, write))


def _status(error: TAIAError) -> HTTPStatus:
    """Returns 404 for what is not there, 503 for what may be there later, and 400 for what can never be."""
    from taia_hub.hub import OutOfReachError

    if not isinstance(error, RepositoryError):
        return HTTPStatus.BAD_REQUEST
    later, cause = isinstance(error, OutOfReachError), error.__cause__
    while cause is not None:  # the disk, or a Hub that is ill or has enough of us
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        later |= getattr(cause, "errno", None) is not None or status == 429 or status >= 500
        cause = cause.__cause__
    return HTTPStatus.SERVICE_UNAVAILABLE if later else HTTPStatus.NOT_FOUND
