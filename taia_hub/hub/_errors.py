"""Errors of the Hub client and of the disk, said in our own words with the Hub's own hint."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from taia_hub.errors import RepositoryError

# Transport errors derive from the HTTP client's own base class, which huggingface_hub may exchange for another.
TransportError: type[Exception] = next(cls for cls in HfHubHTTPError.__bases__ if cls is not OSError)


@contextlib.contextmanager
def hub_errors(name: str, *, what: str, revision: str | None = None) -> Iterator[None]:
    """Turns the Hub client's errors into a `RepositoryError` that keeps the Hub's own hint.

    Args:
        name: The Hub id.
        what: What the repository is for.
        revision: The revision that was asked for.

    Yields:
        Nothing.

    Raises:
        RepositoryError: If the Hub refuses or cannot be reached.
    """
    try:
        yield
    except HFValidationError as error:
        raise RepositoryError(f"'{name}' is neither a folder here nor a Hub id.", str(error)) from error
    except LocalTokenNotFoundError as error:
        raise RepositoryError(f"The {what} '{name}' cannot be reached without a token.", _hint(error)) from error
    except GatedRepoError as error:
        raise RepositoryError(f"The {what} '{name}' is gated.", _hint(error)) from error
    except RepositoryNotFoundError as error:
        raise RepositoryError(f"The {what} '{name}' does not exist, or is private.", _hint(error)) from error
    except RevisionNotFoundError as error:
        raise RepositoryError(
            f"The {what} '{name}' has no revision '{revision}' (any more).",
            f"Ask its owner to restore it, or name another revision. {_hint(error)}",
        ) from error
    except RemoteEntryNotFoundError as error:
        raise RepositoryError(f"The {what} '{name}' lacks a file that is needed.", _hint(error)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise RepositoryError(
            f"The {what} '{name}' is not in the cache and the Hub cannot be reached.",
            f"Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {_hint(error)}",
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 412:
            raise RepositoryError(
                f"'{name}' got another commit while this one was made; nothing was published.",
                "Look at what changed there, then push again.",
            ) from error
        raise RepositoryError(f"The Hub refused a request for the {what} '{name}' ({status}).", _hint(error)) from error
    except TransportError as error:
        raise RepositoryError(f"The Hub cannot be reached for the {what} '{name}'.", _hint(error)) from error


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a `RepositoryError`.

    Args:
        folder: The folder that is written to.

    Yields:
        Nothing.

    Raises:
        RepositoryError: If writing fails; nothing that was there is replaced.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, RepositoryError):
            raise
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full and number != errno.EROFS and not isinstance(error, PermissionError):
            raise
        reason = "there is no space left" if full else "it may not be written"
        raise RepositoryError(
            f"'{folder}' was not written: {reason}.", "Nothing there was replaced. Free space or choose another folder."
        ) from error


def _hint(error: BaseException) -> str:
    return " ".join(str(error).split())
