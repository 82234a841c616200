"""Hostile ZeroMQ peers: strangers with wrong keys, subscribers and clients that misbehave.

Each makes about `count` connections or requests, is bounded in time, and returns a tally. `keys` are those of
an allowed client; None where the daemon takes anyone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq

from inspectord.keys import Keys

HOLD_S = 2.0
AT_ONCE = 50
Address = tuple[str, int]


def endpoint(address: Address) -> str:
    return f"tcp://{address[0]}:{address[1]}"


Insider = Callable[[Address, int, int, Keys | None], Counter[str]]


def strangers(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """No key, a key that nobody allowed, a wrong server key, a password; let_in counts those that hear.

    keys: only the server's public key is used, which is no secret.
    """
    rng = random.Random(seed)
    server_public = keys.server if keys else zmq.curve_keypair()[0].decode()
    tally: Counter[str] = Counter()
    for first in range(0, count, AT_ONCE):
        with zmq.Context() as context:
            peers = [
                _stranger(context, rng, server_public, tally) for _ in range(min(AT_ONCE, count - first))
            ]
            for peer in peers:
                peer.connect(endpoint(address))
            time.sleep(0.5)  # five heartbeats: who is let in has heard one
            tally["let_in"] += sum(peer.poll(0) > 0 for peer in peers)
            tally["tried"] += len(peers)
            context.destroy(linger=0)
    return tally


def _stranger(
    context: zmq.Context[Any], rng: random.Random, server_public: str, tally: Counter[str]
) -> zmq.Socket[Any]:
    peer = _socket(context, zmq.SUB, None)
    peer.subscribe(b"")
    kind = rng.choice(("no_key", "unknown_key", "wrong_server_key", "password"))
    tally[kind] += 1
    if kind == "password":
        peer.plain_username, peer.plain_password = b"admin", b"admin"
    elif kind != "no_key":
        wrong = kind == "wrong_server_key"
        public, secret = (each.decode() for each in zmq.curve_keypair())
        Keys(zmq.curve_keypair()[0].decode() if wrong else server_public, public, secret).apply(peer)
    return peer


def stalled_subscribers(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """Subscribe to all, read nothing, go without a word."""
    del seed
    tally: Counter[str] = Counter()
    for first in range(0, count, AT_ONCE):
        with zmq.Context() as context:
            for _ in range(min(AT_ONCE, count - first)):
                peer = _socket(context, zmq.SUB, keys, hwm=1)
                peer.subscribe(b"")
                peer.connect(endpoint(address))
                tally["connected"] += 1
            time.sleep(HOLD_S)
            context.destroy(linger=0)
    return tally


def slow_readers(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """One message each now and then."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    with zmq.Context() as context:
        peers = [_socket(context, zmq.SUB, keys, hwm=1) for _ in range(min(count, AT_ONCE))]
        for peer in peers:
            peer.subscribe(b"")
            peer.connect(endpoint(address))
        end_s = time.monotonic() + 2 * HOLD_S
        while time.monotonic() < end_s:
            tally["read"] += _read_one(rng.choice(peers))
            time.sleep(0.02)
        tally["connected"] += len(peers)
        context.destroy(linger=0)
    return tally


def _read_one(peer: zmq.Socket[Any]) -> bool:
    if not peer.poll(0):
        return False
    peer.recv_multipart()
    return True


_KILLED = """
import sys, zmq
from tests.faults.insiders import Keys, _socket
peer = _socket(zmq.Context(), zmq.SUB, Keys(*sys.argv[2:]) if sys.argv[2:] else None)
peer.subscribe(b"")
peer.connect(sys.argv[1])
while True:
    peer.recv_multipart()
    print("heard", flush=True)
"""


def killed_subscribers(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """Processes that listen, and are killed by SIGKILL in the middle of it."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    texts = [keys.server, keys.public, keys.secret] if keys else []
    for _ in range(count):
        command = [sys.executable, "-c", _KILLED, endpoint(address), *texts]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            tally["heard"] += bool(process.stdout.readline())
            time.sleep(rng.random() * 0.3)
            process.kill()
        tally["killed"] += 1
    return tally


def subscriptions(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """One allowed subscriber that asks for `count` topics, and takes half of them back."""
    tally: Counter[str] = Counter()
    with zmq.Context() as context:
        peer = _socket(context, zmq.SUB, keys)
        peer.connect(endpoint(address))
        for number in range(count):
            peer.subscribe(b"%d/%d" % (seed, number))
            if number % 2:
                peer.unsubscribe(b"%d/%d" % (seed, number))
        time.sleep(min(10.0, 1 + count / 50_000))  # the I/O threads have to carry them over
        tally["subscriptions"] += count
        context.destroy(linger=0)
    return tally


def odd_requests(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """Requests of every wrong kind, and right ones; one that is too long costs the connection."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    with zmq.Context() as context:
        peer = _socket(context, zmq.DEALER, keys)
        peer.reconnect_ivl = 20  # ms
        peer.connect(endpoint(address))
        for number in range(count):
            tally["asked"] += _ask(peer, _odd_envelope(rng, number))
            if number % 20 == 19:
                tally["answered"] += _drain(peer, 200)
        tally["answered"] += _drain(peer, 2000)
        context.destroy(linger=0)
    return tally


def _odd_envelope(rng: random.Random, number: int) -> list[bytes]:
    request = odd_request(rng)
    return rng.choice(
        (
            [b"", request],
            [request],
            [b"", b"", request],
            [rng.randbytes(8) for _ in range(rng.randrange(1, 60))],
            [b"%d" % number, request],
        )
    )


def odd_request(rng: random.Random) -> bytes:
    """Bytes that are no request, or one of a kind that no client needs."""
    deep = rng.choice((100, 5000, 30_000))
    number: Any = rng.choice(
        (0, -1, 1 << 62, 1 << 63, 1 << 64, -(1 << 200), 1e308, True, "1", [], {}, None, 0.5)
    )
    replay = {"what": "replay", "camera": rng.choice(("cam1", "", "../x", "c" * 5000, None, 5, ["cam1"]))}
    kinds: tuple[bytes, ...] = (
        rng.randbytes(rng.randrange(2000)),
        b"[" * 1000 + b"]" * 1000,
        b"[" * deep,
        b'{"a":' * (deep // 3),
        b'{"what":"replay","camera":"cam1","from_seq":' + b"9" * rng.choice((30, 3900, 60_000)) + b"}",
        b'{"what": NaN}',
        b'{"what":"status"',
        b"\xff\xfe{}",
        b'{"what":"\\ud800"}',
        b"null",
        b"{}",
        b'"' + b"x" * 60_000 + b'"',
        json.dumps(replay | {"from_seq": number, "to_seq": rng.choice((number, 1, 1 << 62))}).encode(),
        json.dumps(replay | {"camera": "cam1", "from_seq": 1, "to_seq": 1 << 62}).encode(),
        json.dumps(replay | {"camera": "cam1", "boot_id": "' OR 1=1 --", "from_seq": 1}).encode(),
        json.dumps(
            {"what": rng.choice(("snapshot", "status", "STATUS", "eval", None, 7, ["status"]))}
        ).encode(),
    )
    return rng.choice(kinds)


def unread_replies(address: Address, seed: int, count: int, keys: Keys | None) -> Counter[str]:
    """Ask for the largest replay again and again and read no reply, over several connections."""
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    request = [b"", json.dumps({"what": "replay", "camera": "cam1", "from_seq": 1}).encode()]
    with zmq.Context() as context:
        peers = [_socket(context, zmq.DEALER, keys, hwm=1) for _ in range(10)]
        for peer in peers:
            peer.sndhwm = 10_000
            peer.connect(endpoint(address))
        end_s = time.monotonic() + 10.0
        while tally["asked"] < count and time.monotonic() < end_s:
            tally["asked"] += _ask(rng.choice(peers), request)
        time.sleep(HOLD_S)
        context.destroy(linger=0)
    return tally


def _ask(peer: zmq.Socket[Any], request: list[bytes]) -> bool:
    try:
        peer.send_multipart(request, zmq.NOBLOCK)
    except zmq.Again:
        time.sleep(0.001)
        return False
    return True


def _drain(peer: zmq.Socket[Any], patience_ms: int) -> int:
    answers = 0
    while peer.poll(patience_ms if not answers else 20):
        peer.recv_multipart()
        answers += 1
    return answers


def _socket(context: zmq.Context[Any], kind: int, keys: Keys | None, hwm: int = 1000) -> zmq.Socket[Any]:
    """One connection, never a second: each attack counts its own."""
    peer: zmq.Socket[Any] = context.socket(kind)
    peer.linger, peer.rcvhwm, peer.reconnect_ivl = 0, hwm, -1
    if hwm == 1:
        peer.rcvbuf = 2048
    if keys is not None:
        keys.apply(peer)
    return peer


SUBSCRIBERS: dict[str, Insider] = {
    "strangers": strangers,
    "stalled-subscribers": stalled_subscribers,
    "slow-readers": slow_readers,
    "killed-subscribers": killed_subscribers,
    "subscriptions": subscriptions,
}
ASKERS: dict[str, Insider] = {"odd-requests": odd_requests, "unread-replies": unread_replies}
