"""Ports for the servers that tests start."""

import random
import socket


def free_port():
    """Returns a port on which nobody listens, of those that no system hands out by itself.

    Of the others, another test's connection may take it before the server does; and whoever asks again and again
    whether the server is there may be answered by himself, as a connection's two ends can be one port.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
