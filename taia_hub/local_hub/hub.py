"""A Hub on this machine, kept in a folder."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_hub.common.imports import import_or_raise
from taia_hub.common.ports import check_port
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.local_hub.app import build_app
from taia_hub.local_hub.names import check_repo_id
from taia_hub.local_hub.service import LargeFiles, Service
from taia_hub.local_hub.store import Store

if TYPE_CHECKING:
    from starlette.responses import Response

_HOST = "127.0.0.1"
_KEPT_REQUESTS = 10_000


class LocalHub:
    """A Hub on this machine, kept in a folder, for work offline, classrooms and tests.

    huggingface_hub, transformers, PEFT and datasets use it as they use the Hub, once `HF_ENDPOINT` names it.
    Only this machine reaches it. Needs the extra `demo`.

    Args:
        folder: Where repositories are kept; made when it does not exist, found again at the next start.
        port: The port to listen on; 0 for any that is free.
        user: The name of its one user, the namespace of repositories that are named without one.
        require_token: Whether writing and private repositories need the token.
        large_files: How clients send weights: `"regular"` within the commit, which works with every client, or
            `"lfs"` in a stream ahead of it, for files of gigabytes and `Dataset.push_to_hub`, which needs
            `HF_HUB_DISABLE_XET=1`.

    Attributes:
        folder: The folder.
        requests: The method and path of each request since the start, the last 10,000.
        fail: For tests: called with the method and path of each request; what it returns (a Starlette response
            or a status) is the answer, and None lets the Hub answer.

    Raises:
        ConfigError: When an argument is not allowed.

    Example:
        >>> import tempfile
        >>> from huggingface_hub import HfApi
        >>> with tempfile.TemporaryDirectory() as folder, LocalHub(folder) as hub:
        ...     api = HfApi(endpoint=hub.endpoint, token=hub.token)
        ...     _ = api.create_repo("org/model")
        ...     api.list_repo_files("org/model")
        ['.gitattributes']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        port: int = 0,
        user: str = "local",
        require_token: bool = True,
        large_files: LargeFiles = "regular",
    ) -> None:
        if large_files not in ("regular", "lfs"):
            raise ConfigError(f"large_files is {large_files!r}. Choose 'regular' or 'lfs'.")
        check_repo_id(f"{user}/repository")
        self.folder = Path(folder).absolute()
        self.requests: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], Response | int | None] | None = None
        self._port, self._user = port, user
        self._require_token, self._large_files = require_token, large_files
        self._store: Store | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def store(self) -> Store:
        """The repositories on disk; RepositoryError when the Hub is not running."""
        if self._store is None:
            raise RepositoryError(f"The local Hub in '{self.folder}' is not running.", hint="Call start() first.")
        return self._store

    @property
    def endpoint(self) -> str:
        """Where the Hub is, such as `http://127.0.0.1:8123`; RepositoryError when it has no port yet."""
        if not self._port:
            raise RepositoryError(f"The local Hub in '{self.folder}' is not running.", hint="Call start() first.")
        return f"http://{_HOST}:{self._port}"

    @property
    def token(self) -> str:
        """The access token; made with the folder and the same at every start."""
        return self.store.disk.token

    def environment(self) -> dict[str, str]:
        """Returns the variables to set in a client process before it imports huggingface_hub.

        `HF_HOME` is a folder of this Hub, so that what was loaded here is never taken for a repository of the same name
        on the Hub. RepositoryError when the Hub is not running.
        """
        bypass = [*filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy")]), _HOST, "localhost"]
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.folder / "clients"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": ",".join(bypass),
            "no_proxy": ",".join(bypass),
        }
        return {**variables, "HF_HUB_DISABLE_XET": "1"} if self._large_files == "lfs" else variables

    def start(self) -> LocalHub:
        """Starts serving in a thread and returns the Hub itself when it answers.

        Raises:
            MissingDependencyError: When the extra `demo` is not installed.
            ConfigError: When the port is taken.
            RepositoryError: When the folder is in use, not a local Hub's or cannot be written.
        """
        if self._thread is not None:
            return self
        import_or_raise("starlette", "demo", "LocalHub")
        uvicorn = import_or_raise("uvicorn", "demo", "LocalHub")
        listener = _listen(self._port)
        try:
            self._store = Store(self.folder)
        except BaseException as error:
            listener.close()
            if isinstance(error, OSError) and not isinstance(error, RepositoryError):
                raise RepositoryError(
                    f"A Hub cannot be kept in '{self.folder}': {error.strerror or error}.",
                    hint="Choose a folder that can be written.",
                ) from error
            raise
        self._port = listener.getsockname()[1]
        service = Service(self._store, self._user, self.endpoint, self._large_files)
        app = build_app(service, require_token=self._require_token, record=self._record, fail=lambda: self.fail)
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="taia-local-hub", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.002)
        if not self._server.started:
            self.stop()
            raise RepositoryError("The server of the local Hub did not start.", hint="Its log says why.")
        return self

    def stop(self) -> None:
        """Stops serving and frees the folder; does nothing when the Hub is not running."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._thread = self._server = None
        if self._store is not None:
            self._store.close()
            self._store = None

    def serve_forever(self) -> None:
        """Serves until Ctrl-C, then stops cleanly; a Hub that is not running is started, as by `start`."""
        try:
            self.start()
            while self._thread is not None and self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _record(self, method: str, path: str) -> None:
        self.requests.append((method, path))
        del self.requests[:-_KEPT_REQUESTS]


def _listen(port: int) -> socket.socket:
    check_port(_HOST, port)
    # asyncio sends at once only on sockets that say TCP; on others every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        # Elsewhere this option would share the port with another server instead of only reusing a closed one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_HOST, port))
    return listener
