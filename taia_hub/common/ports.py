"""Ports of this machine: whether a server can listen on one, before the long work that comes first."""

from __future__ import annotations

import errno
import socket

from taia_hub.errors import ConfigError


def check_port(host: str, port: int, host_setting: str = "--host") -> None:
    """Checks that a server can listen; `host_setting` is where its address was given.

    Raises:
        ConfigError: If the port is in use or not allowed, or the address is not of this machine.
    """
    try:
        _listen(host, port)
    except PermissionError as error:
        raise ConfigError(f"Port {port} is not allowed to this user.", "Choose one above 1023 with --port.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} on {host} is in use.",
                f"Choose another, as in --port {_free_port(host, port)}, or end what uses it.",
            ) from error
        raise ConfigError(
            f"This machine cannot listen on '{host}': {error.strerror or error}.",
            f"Give one of its addresses with {host_setting}: 127.0.0.1 for itself, 0.0.0.0 for everyone.",
        ) from error


def _free_port(host: str, port: int) -> int:
    """Returns a free port: one of the next hundred, else any."""
    for candidate in range(port + 1, min(port + 101, 65536)):
        try:
            return _listen(host, candidate)
        except OSError:
            continue
    return _listen(host, 0)


def _listen(host: str, port: int) -> int:
    """Listens for a moment; returns the port, which for 0 is any free one."""
    family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        found: int = probe.getsockname()[1]
    return found
