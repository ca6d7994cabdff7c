"""What a Space has besides its files: set when it is made, changed with a commit, put back when that fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from taia_hub.hub._errors import hub_errors
from taia_hub.hub._names import TransportError
from taia_hub.hub.access import api as hub_api

if TYPE_CHECKING:
    from taia_hub.hub.publish import Head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpaceSettings:
    """What a Space of Gradio has besides its files.

    Attributes:
        variables: Name to value; a Space's other variables stay.
        hardware: What it shall run on; None leaves that to the Hub, or as it is.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    hardware: str | None = None

    def creation(self) -> dict[str, Any]:
        """Returns the keywords of `HfApi.create_repo` that make such a Space."""
        variables = [{"key": key, "value": value} for key, value in self.variables.items()]
        return {"space_sdk": "gradio", "space_hardware": self.hardware, "space_variables": variables}


def set_space(repo_id: str, settings: SpaceSettings, *, token: str | bool | None = None) -> None:
    """Changes the settings of a Space: all of them, or nothing.

    Raises:
        RepositoryError: If any request fails.
    """
    with hub_errors(repo_id, what="Space"), contextlib.ExitStack() as undo:
        change_space(hub_api(token), repo_id, settings, undo)
        undo.pop_all()


def space_hardware(head: Head) -> str | None:
    """Returns the hardware that a Space has, or has been asked for; None for one that is not there or has none.

    Raises:
        RepositoryError: If the request fails.
    """
    if head.sha is None:
        return None
    with hub_errors(head.repo_id, what="Space"):
        runtime = hub_api(head.token).get_space_runtime(head.repo_id)
    return runtime.requested_hardware or runtime.hardware


def change_space(api: HfApi, repo_id: str, settings: SpaceSettings, undo: contextlib.ExitStack) -> None:
    """Changes what differs in the settings of a Space; every change restarts it. `undo` gets what puts them back."""
    if settings.hardware:
        runtime = api.get_space_runtime(repo_id)
        before = runtime.requested_hardware or runtime.hardware
        if before != settings.hardware:
            api.request_space_hardware(repo_id, settings.hardware)  # type: ignore[arg-type]
            if before:
                undo.callback(_put_back, repo_id, api.request_space_hardware, repo_id, before)
    there = api.get_space_variables(repo_id)
    for key, value in settings.variables.items():
        if key not in there:
            api.add_space_variable(repo_id, key, value)
            undo.callback(_put_back, repo_id, api.delete_space_variable, repo_id, key)
        elif there[key].value != value:
            api.add_space_variable(repo_id, key, value)
            undo.callback(_put_back, repo_id, api.add_space_variable, repo_id, key, there[key].value)


def _put_back(name: str, call: Any, *arguments: Any) -> None:
    """Takes one change back; the error that made it necessary is the one to raise."""
    try:
        call(*arguments)
    except (HfHubHTTPError, TransportError) as error:
        logger.warning("The settings of '%s' were changed for a commit that failed, and not put back: %s", name, error)
