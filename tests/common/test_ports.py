"""Whether a server can listen, before the work that comes first."""

import re
import socket

import pytest

from taia_hub.common.ports import check_port
from taia_hub.errors import ConfigError


def test_a_port_in_use_is_an_error_that_names_a_free_one():
    with socket.socket() as used, socket.socket() as next_one:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        try:
            next_one.bind(("127.0.0.1", port + 1))
            next_one.listen()
        except (OSError, OverflowError):
            pass  # somebody else's
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use") as caught:
            check_port("127.0.0.1", port)
        named = int(re.search(r"--port (\d+)", caught.value.hint)[1])
        assert named not in (port, port + 1)
        check_port("127.0.0.1", named)
    check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(ConfigError, match=r"cannot listen on '192\.0\.2\.1'") as caught:
        check_port("192.0.2.1", 8000, "GRADIO_SERVER_NAME")
    assert "with GRADIO_SERVER_NAME" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot listen on 'no such host'"):
        check_port("no such host", 8000)


def test_a_port_that_only_root_may_take_is_an_error(monkeypatch):
    def denied(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("Denied", (socket.socket,), {"bind": denied}))
    with pytest.raises(ConfigError, match="Port 80 is not allowed to this user") as caught:
        check_port("127.0.0.1", 80)
    assert "above 1023" in caught.value.hint
