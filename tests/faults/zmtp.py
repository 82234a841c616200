"""Bytes of ZMTP 3.1 (rfc.zeromq.org/spec/37) and CURVE (spec/26), right and wrong, for raw TCP peers."""

from __future__ import annotations

import random
import struct

MORE, LONG, COMMAND = 1, 2, 4
GREETING_SIZE = 64
HELLO_SIZE = 200  # \x05HELLO, version, 72 zeros, client key, nonce, signature box


def greeting(mechanism: bytes = b"NULL", minor: int = 1) -> bytes:
    """The 64 bytes that open every connection."""
    return b"\xff" + bytes(8) + b"\x7f\x03" + bytes([minor]) + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0, claims: int | None = None) -> bytes:
    """A frame; `claims` a size that the body does not have."""
    size = len(body) if claims is None else claims
    if size > 255:
        return bytes([flags | LONG]) + struct.pack(">Q", size) + body
    return bytes([flags, size]) + body


def ready(kind: bytes = b"SUB") -> bytes:
    """The NULL mechanism's handshake: this end is a socket of that kind."""
    prop = bytes([11]) + b"Socket-Type" + struct.pack(">I", len(kind)) + kind
    return frame(b"\x05READY" + prop, COMMAND)


def null_peer(kind: bytes) -> bytes:
    """Greeting and handshake in one go; libzmq drops a peer whose messages come before its answer."""
    return greeting() + ready(kind)


def curve_hello(rng: random.Random) -> bytes:
    """Of the right form; its signature box fits no key."""
    body = b"\x05HELLO\x01\x00" + bytes(72) + rng.randbytes(32) + rng.randbytes(8) + rng.randbytes(80)
    assert len(body) == HELLO_SIZE
    return frame(body, COMMAND)


def subscription(topic: bytes) -> bytes:
    """As a message, which every ZMTP 3 publisher understands."""
    return frame(b"\x01" + topic)


def garbage(rng: random.Random) -> tuple[bytes, bytes]:
    """What a scanner, a browser, a wrong program or a fuzzer sends, at once and after the daemon's answer."""
    at_once = (
        rng.randbytes(rng.randrange(1, 4096)),
        b"GET / HTTP/1.1\r\nHost: box\r\nUser-Agent: " + b"A" * rng.randrange(2000) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(508),  # a TLS hello
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0" * rng.randrange(1, 4096),
        b"\xff" * rng.randrange(1, 4096),
        greeting()[: rng.randrange(1, 64)],
        greeting(minor=rng.randrange(256)) + rng.randbytes(rng.randrange(1, 2048)),
        b"\x01\x00" + rng.randbytes(64),  # ZMTP 1.0
    )
    after_answer = (
        rng.randbytes(rng.randrange(1, 2048)),
        frame(rng.randbytes(rng.randrange(200)), rng.randrange(256)) * 20,
        b"".join(subscription(rng.randbytes(rng.randrange(9))) for _ in range(20)),
        b"".join(
            frame(b"\0" + rng.randbytes(rng.randrange(3))) for _ in range(20)
        ),  # takes back what it never had
    )
    if rng.random() < 0.7:
        return rng.choice(at_once), b""
    return null_peer(rng.choice((b"SUB", b"XSUB", b"DEALER", b"REQ", b"PUB", b"nonsense"))), rng.choice(
        after_answer
    )
