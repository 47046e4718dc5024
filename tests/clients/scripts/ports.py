"""A free loopback port for a program that a script starts."""

import socket


def free_port():
    """Return a TCP port that is free on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
