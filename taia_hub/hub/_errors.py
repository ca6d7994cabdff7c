"""Errors of the Hub client and of the disk, said in our own words with the Hub's own hint."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
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

from taia_hub.common.devices import is_out_of_memory
from taia_hub.common.text_tables import byte_size
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, TAIAError
from taia_hub.hub._cache import cached_commits
from taia_hub.hub._names import DATA, TransportError, files_there, is_path, meant, revision_meant
from taia_hub.hub._seen import seen_file, seen_in

_LONGEST = 300
_TOKEN = "Check the token (HF_TOKEN, or `hf auth login`) and what it may do."
_PAID = (
    "The Hub asks for a paid plan. Free personal accounts older than 30 days may host two Spaces on ZeroGPU "
    "(--hardware zero-a10g); more of them, those of organisations and Gradio on free CPUs need PRO or a Team plan, any "
    "other hardware a payment method."
)
_NEXT_STEP = {
    401: _TOKEN,
    402: _PAID,
    403: _TOKEN,
    404: "Check the name and its owner.",
    409: "Look at what is there, then try again.",
}


class PaymentError(RepositoryError):
    """The Hub asks for a paid plan."""


class OutOfReachError(RepositoryError):
    """The Hub cannot be reached, and the cache does not suffice."""


@contextlib.contextmanager
def hub_errors(name: str, *, what: str, revision: str | None = None, local: bool = False) -> Iterator[None]:
    """Turns the Hub client's errors into a `RepositoryError` that says what to do.

    `what` says what `name` is; `local`, that it could have been the name of a folder here.

    Raises:
        RepositoryError: If the Hub refuses or cannot be reached.
    """
    try:
        yield
    except HFValidationError as error:
        near = meant(name, what=what)
        raise RepositoryError(f"'{name}' is neither a folder here nor a Hub id.{near}", str(error)) from error
    except LocalTokenNotFoundError as error:
        raise RepositoryError(f"The {what} '{name}' cannot be reached without a token.", reason_of(error)) from error
    except GatedRepoError as error:
        raise RepositoryError(f"The {what} '{name}' is gated.", reason_of(error)) from error
    except RepositoryNotFoundError as error:
        raise not_there(name, what=what, local=local) from error
    except RevisionNotFoundError as error:
        near = revision_meant(name, str(revision), what=what)
        raise RepositoryError(
            f"The {what} '{name}' has no revision '{revision}' (any more).{near}",
            "Name a branch, tag or commit that it has; only its owner can restore one that is gone.",
        ) from error
    except RemoteEntryNotFoundError as error:
        if seen := seen_in(files_there(name)):
            said = f"The {what} '{name}' lacks a file that is needed: it is {seen[0]}."
            raise RepositoryError(said, seen[1]) from error
        raise RepositoryError(f"The {what} '{name}' lacks a file that is needed.", reason_of(error)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, HfHubHTTPError) and error.__cause__.response is not None:
            raise _refused(error.__cause__, name, what) from error
        raise _out_of_reach(name, what, local, revision) from error
    except HfHubHTTPError as error:
        raise _refused(error, name, what) from error
    except TransportError as error:
        if local:
            raise _out_of_reach(name, what, local, revision) from error
        raise OutOfReachError(
            f"The Hub cannot be reached for the {what} '{name}'.",
            f"Check the network and HF_ENDPOINT. {reason_of(error)}",
        ) from error
    except RepositoryError:
        raise
    except SafetensorError as error:
        raise RepositoryError(
            f"A weights file of the {what} '{name}' is damaged: {error}.",
            "Copy it again, or download it again with force_download=True.",
        ) from error
    except OSError as error:  # also what transformers makes of a Hub that fails
        if _is_full(error):
            hint = "Free space, or give the cache another disk with HF_HOME or `cache_dir`."
            raise RepositoryError(f"There is no space left for the {what} '{name}'.", hint) from error
        hint = f"Check that it is a whole model of transformers, and the network. {reason_of(error)}"
        raise RepositoryError(f"The {what} '{name}' could not be loaded.", hint) from error


@contextlib.contextmanager
def foreign_errors(name: str, *, what: str, revision: str | None = None, hint: str = "") -> Iterator[None]:
    """Says in our words why a library cannot read or build what others wrote, with its reason in one line.

    Only calls of that library stand in the block: what this package gets wrong is nobody else's fault. `hint` says what
    to do instead of the usual.

    Raises:
        RepositoryError: As of `hub_errors`.
        MissingDependencyError: If what is read needs a package that is not installed.
        ConfigError: If the library refuses it, in whatever way.
    """
    try:
        with hub_errors(name, what=what, revision=revision):
            yield
    except TAIAError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"The {what} '{name}' needs what is not installed: {reason_of(error)}", hint or "Install it."
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"The {what} '{name}' is no language model that transformers can build: {reason_of(error)}",
            hint or "Check its config.json and its weights; download or save it again.",
        ) from error


def reason_of(error: BaseException) -> str:
    """Returns a library's reason in one line of bounded length."""
    said = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in said:
        return "its weights have other shapes than its config.json says."
    if not said or not isinstance(error, (ValueError, RuntimeError, OSError, ImportError)):
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def not_there(name: str, *, what: str, local: bool = True) -> RepositoryError:
    """Says that there is no such repository, nor a folder where one may be meant, and what is near."""
    if local and what != DATA and Path(name).is_file():
        return _is_file(name)
    if is_path(name):
        hint = "Give an existing folder or a Hub id."
        if what == "base model":  # which another file may name
            hint = "Give the base's Hub id, or load with `TAIAForCausalLM.from_adapter(base, adapter)`."
        return RepositoryError(f"The {what} '{name}' is no folder here.{meant(name)}", hint)
    for other in () if what in (DATA, "Space") else (DATA, "Space"):
        if files_there(name, other):
            return RepositoryError(f"'{name}' is a {other} on the Hub, and no {what}.", "Check the name.")
    near = meant(name, what=what, local=local, online=True)
    if local:
        own = "file" if what == DATA else "folder"
        said = f"There is no {own} '{name}' here and no {what} of that name on the Hub (or it is private).{near}"
    else:
        said = f"There is no {what} '{name}' on the Hub (or it is private).{near}"
    return RepositoryError(
        said, "Check the name and its owner; for a private one give a token (HF_TOKEN, or `hf auth login`)."
    )


def not_cached(what: str, name: str, revision: str | None) -> OutOfReachError:
    """Says that a part of a repository is out of reach; `what` begins the sentence."""
    return OutOfReachError(
        f"{what} is not in the cache, and the Hub cannot be reached.",
        f"Bring it here with a network: `hf download {name} --revision {revision}`.",
    )


def no_folder(name: str | Path, hint: str) -> RepositoryError:
    """Says that what can only be a folder is not there, and what is near."""
    if Path(name).is_file():
        return _is_file(name)
    return RepositoryError(f"There is no folder '{name}' here.{meant(str(name))}", hint)


def _is_file(name: str | Path) -> RepositoryError:
    if (seen := seen_file(Path(name))) and seen[0] != "empty":
        return RepositoryError(f"'{name}' is {seen[0]}.", seen[1])
    return RepositoryError(f"'{name}' is a file.", "Give the folder that it is in, or a Hub id.")


def _out_of_reach(name: str, what: str, local: bool, revision: str | None) -> RepositoryError:
    if local and what != DATA and Path(name).is_file():
        return _is_file(name)
    if known := cached_commits(name, kind="dataset" if what == DATA else "model") if "/" in name else ():
        return OutOfReachError(
            f"Of the {what} '{name}' the cache does not hold the revision '{revision or 'main'}', and the Hub cannot "
            "be reached.",
            f"The cache holds {', '.join(known[:3])}: name it as the revision, or check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE.",
        )
    also = ", and there is no such folder here" if local and "/" in name else ""
    return OutOfReachError(
        f"The {what} '{name}' is not in the cache and the Hub cannot be reached{also}."
        f"{meant(name, what=what, local=local)}",
        "Check the name, the network, HF_ENDPOINT and HF_HUB_OFFLINE.",
    )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a `RepositoryError`.

    Raises:
        RepositoryError: If writing fails; nothing that was there is replaced.
    """
    try:
        yield
    except Exception as error:
        # the tokenizers package raises no OSError when the disk is full, but an Exception of no class of its own
        known = isinstance(error, OSError | SafetensorError) or (type(error) is Exception and _is_full(error))
        if isinstance(error, RepositoryError) or not known:
            raise
        reason, step = _reason(error)
        if not reason:
            raise
        raise RepositoryError(
            f"'{folder}' was not written: {reason}.", f"Nothing there was replaced. {step}, or choose another folder."
        ) from error


def _refused(error: HfHubHTTPError, name: str, what: str) -> RepositoryError:
    status = getattr(error.response, "status_code", 0)
    if status == 412:
        return RepositoryError(
            f"'{name}' got another commit while this one was made; nothing was published.",
            "Look at what changed there, then push again.",
        )
    step = _NEXT_STEP.get(status, "Try again later; the Hub has a problem of its own." if status >= 500 else "")
    kind = PaymentError if status == 402 else RepositoryError
    return kind(f"The Hub refused a request for the {what} '{name}' ({status}).", f"{step} {reason_of(error)}".strip())


def check_space(folder: Path, needed: int, what: str, more: str = "") -> None:
    """Refuses to begin what needs more bytes than are free where a folder is, or will be.

    Raises:
        RepositoryError: If they are not free; the message calls what is written `what`, the hint ends in `more`.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise RepositoryError(
            f"{what} needs {byte_size(needed)} more at '{there}', where {byte_size(free)} are free.",
            f"Free space, or choose another folder.{more}",
        )


def _reason(error: Exception) -> tuple[str, str]:
    """Returns why nothing was written and what to do, or two empty texts where it is not the folder's fault."""
    if isinstance(error, shutil.Error):  # a list of what could not be copied: source, target and why
        first = error.args[0][0] if error.args and isinstance(error.args[0], list) and error.args[0] else None
        why = str(first[-1] if isinstance(first, tuple) else error)
        found = re.search(r"\[Errno (\d+)\]", why)
        known = _reason(OSError(int(found[1]), os.strerror(int(found[1])))) if found else ("", "")
        return known if known[0] else (why.rstrip("."), "Look at it")
    if _is_full(error):
        return "no space is left", "Free space"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "permission was denied", "Allow it"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"'{getattr(error, 'filename', None)}' is a file", "Move it"
    if getattr(error, "errno", None) == errno.ENOENT:
        return "the folder above it cannot be made", "Check the path"
    return "", ""


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
