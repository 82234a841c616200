"""Peers that speak ZMTP by hand, to break its rules; addresses are (host, port)."""

from __future__ import annotations

import socket


def address_of(endpoint):
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


def frame(body, more=False, command=False):
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def greeting(mechanism=b"NULL"):
    return b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + b"\0" * 32


def greeted(endpoint, kind):
    """A connection that has said who it is, without security."""
    peer = socket.create_connection(address_of(endpoint), timeout=3)
    peer.sendall(greeting())
    _exactly(peer, 64)
    peer.sendall(frame(b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind, command=True))
    _exactly(peer, _exactly(peer, 2)[1])  # its READY: libzmq drops who talks on before ZAP has answered
    return peer


def _exactly(peer, count):
    received = b""
    while len(received) < count:
        more = peer.recv(count - len(received))
        assert more, "hung up"
        received += more
    return received


def is_closed(peer, timeout_s=5.0):
    """The other side has hung up; what it said before is thrown away."""
    peer.settimeout(timeout_s)
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True
