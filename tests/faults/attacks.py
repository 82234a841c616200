"""Hostile peers: each attack makes `count` connections to one port, is bounded in time, and returns a tally.

They are plain TCP and ZeroMQ programs that need nothing of the daemon but its address, so they run on
loopback or in another network namespace:

    python -m tests.faults.attacks garbage 127.0.0.1 5570 --count 500 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from inspectord.keys import Keys
from tests.faults import zmtp
from tests.faults.insiders import ASKERS, SUBSCRIBERS, Address, Insider

TIMEOUT_S = 1.0  # for each connect and send
ANSWER_S = 0.1
HOLD_S = 2.0  # connections that are held open, are held for so long
OPEN_AT_ONCE = 300
RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: close sends RST instead of FIN
MECHANISMS = (b"PLAIN", b"GSSAPI", b"NULL", b"CURVE", b"BOGUS", b"", b"X" * 20)

Opening = tuple[bytes, bytes]  # sent at once, and sent after the daemon's handshake
Attack = Callable[[Address, int, int], Counter[str]]


def connects(address: Address, seed: int, count: int) -> Counter[str]:
    """Connect and disconnect at once, by FIN or by RST."""
    tally: Counter[str] = Counter()
    rng = random.Random(seed)
    for _ in range(count):
        _once(address, tally, reset=rng.random() < 0.5)
    return tally


def port_scan(address: Address, seed: int, count: int) -> Counter[str]:
    """As nmap -sT: the ports around the right one too, each connection reset."""
    tally: Counter[str] = Counter()
    rng = random.Random(seed)
    for _ in range(count):
        port = address[1] + rng.choice((0, 0, rng.randrange(-20, 20)))
        _once((address[0], min(65535, max(1, port))), tally, reset=True)
    return tally


def garbage(address: Address, seed: int, count: int) -> Counter[str]:
    rng = random.Random(seed)
    return _each(address, count, lambda: zmtp.garbage(rng), rng)


def wrong_mechanism(address: Address, seed: int, count: int) -> Counter[str]:
    """A right greeting that asks for another security mechanism, then a handshake of NULL."""
    rng = random.Random(seed)
    return _each(address, count, lambda: (zmtp.greeting(rng.choice(MECHANISMS)), zmtp.ready()), rng)


def truncated_curve(address: Address, seed: int, count: int) -> Counter[str]:
    """CURVE handshakes that end anywhere, or claim another size than they have."""
    rng = random.Random(seed)

    def opening() -> Opening:
        hello = zmtp.curve_hello(rng)
        cut = hello[: rng.randrange(len(hello))]
        resized = zmtp.frame(hello[2:], zmtp.COMMAND, rng.choice((0, 1, 199, 201, 255, 1 << 40)))
        return zmtp.greeting(b"CURVE"), rng.choice((cut, resized, cut + rng.randbytes(300)))

    return _each(address, count, opening, rng)


def curve_hello_flood(address: Address, seed: int, count: int) -> Counter[str]:
    """HELLOs of the right form, which cost the server a public-key operation each, several a connection."""
    rng = random.Random(seed)
    return _each(
        address,
        count,
        lambda: (zmtp.greeting(b"CURVE"), b"".join(zmtp.curve_hello(rng) for _ in range(5))),
        rng,
    )


def oversize(address: Address, seed: int, count: int) -> Counter[str]:
    """Frames and handshake commands that claim up to 2^63 bytes, and begin to send them."""
    rng = random.Random(seed)

    def opening() -> Opening:
        claims = 1 << rng.choice((17, 24, 31, 32, 40, 62, 63))
        flags = rng.choice((0, zmtp.MORE, zmtp.COMMAND))
        huge = zmtp.frame(b"\x01" + bytes(50_000), flags, claims)
        kind = rng.choice((b"SUB", b"DEALER", b"REQ"))
        return rng.choice((zmtp.null_peer(kind), zmtp.greeting(b"CURVE"), zmtp.greeting())), huge

    return _each(address, count, opening, rng)


def huge_subscription(address: Address, seed: int, count: int) -> Counter[str]:
    """Topics of 60 kB up to far above the limit of a request."""
    rng = random.Random(seed)

    def opening() -> Opening:
        topic = rng.randbytes(rng.choice((60_000, 65_000, 70_000, 1_000_000)))
        return zmtp.null_peer(b"SUB"), zmtp.subscription(topic)

    return _each(address, count, opening, rng)


def subscription_flood(address: Address, seed: int, count: int) -> Counter[str]:
    """Each connection subscribes to a thousand topics of its own, and they all leave at once."""
    rng = random.Random(seed)

    def opening() -> Opening:
        name = rng.randbytes(4).hex().encode()
        return zmtp.null_peer(b"SUB"), b"".join(zmtp.subscription(b"%s/%d" % (name, i)) for i in range(1000))

    return _held(address, count, opening)


def endless_message(address: Address, seed: int, count: int) -> Counter[str]:
    """One message of small parts, `count` times 64 kB of them: libzmq gathers parts without a limit."""
    tally: Counter[str] = Counter()
    body = random.Random(seed).randbytes(240)
    parts = zmtp.frame(body, zmtp.MORE) * (65_536 // 242)
    try:
        with socket.create_connection(address, TIMEOUT_S) as peer:
            peer.sendall(zmtp.null_peer(b"DEALER"))
            if _answered(peer, tally, zmtp.GREETING_SIZE + 1):
                for _ in range(count):
                    peer.sendall(parts)
                    tally["kilobytes"] += 64
    except OSError:
        tally["cut"] += 1
    return tally


def half_open(address: Address, seed: int, count: int) -> Counter[str]:
    """Connect, send nothing or a greeting only, and stay."""
    rng = random.Random(seed)
    silent = (b"", zmtp.greeting(), zmtp.greeting(b"CURVE"), zmtp.greeting()[:10], zmtp.null_peer(b"SUB"))
    return _held(address, count, lambda: (rng.choice(silent), b""))


def slowloris(address: Address, seed: int, count: int) -> Counter[str]:
    """A greeting a byte at a time, over many connections at once."""
    rng = random.Random(seed)
    greetings = (zmtp.null_peer(b"SUB"), zmtp.greeting(b"CURVE"))
    return _held(address, count, lambda: (rng.choice(greetings), b""), drip=True)


def never_reads(address: Address, seed: int, count: int) -> Counter[str]:
    """Subscribes to all with the smallest receive buffer, and reads nothing; without CURVE it is let in."""
    all_topics = (zmtp.null_peer(b"SUB"), zmtp.subscription(b""))
    return _held(address, count, lambda: all_topics, buffer=2048)


def _each(address: Address, count: int, opening: Callable[[], Opening], rng: random.Random) -> Counter[str]:
    tally: Counter[str] = Counter()
    for _ in range(count):
        _once(address, tally, opening(), reset=rng.random() < 0.5, answer=rng.random() < 0.1)
    return tally


def _once(
    address: Address,
    tally: Counter[str],
    opening: Opening = (b"", b""),
    reset: bool = False,
    answer: bool = False,
) -> None:
    """One connection: send, perhaps wait for what comes back, close. A cut is counted, never raised."""
    try:
        with socket.create_connection(address, TIMEOUT_S) as peer:
            tally["connected"] += 1
            if reset:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.sendall(opening[0])
            # A peer without security waits for the daemon's READY too, or it is dropped for its haste.
            enough = zmtp.GREETING_SIZE + (b"READY" in opening[0])
            if opening[1] and _answered(peer, tally, enough):
                peer.sendall(opening[1])
            if answer:
                _answered(peer, tally, 1)
    except OSError:
        tally["cut"] += 1


def _answered(peer: socket.socket, tally: Counter[str], enough: int) -> bool:
    """Waits for so many bytes, ANSWER_S for each part at most; False where the daemon hung up."""
    found = 0
    peer.settimeout(ANSWER_S)
    try:
        while found < enough:
            data = peer.recv(4096)
            if not data:
                tally["hung_up"] += 1
                return False
            found += len(data)
        tally["answered"] += 1
    except TimeoutError:
        tally["unanswered"] += 1
    finally:
        peer.settimeout(TIMEOUT_S)
    return True


def _held(
    address: Address, count: int, opening: Callable[[], Opening], drip: bool = False, buffer: int = 0
) -> Counter[str]:
    """`count` connections, OPEN_AT_ONCE at a time, each set held for HOLD_S; `drip` sends byte by byte."""
    tally: Counter[str] = Counter()
    while tally["tried"] < count:
        batch = [_opened(address, buffer, tally) for _ in range(min(OPEN_AT_ONCE, count - tally["tried"]))]
        tally["tried"] += len(batch)
        peers = [(peer, opening()) for peer in batch if peer is not None]
        _hold(peers, drip, tally)
        for peer, _ in peers:
            peer.close()
    return tally


def _opened(address: Address, buffer: int, tally: Counter[str]) -> socket.socket | None:
    peer = socket.socket()
    try:
        if buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        peer.settimeout(TIMEOUT_S)
        peer.connect(address)
    except OSError:
        peer.close()
        tally["cut"] += 1
        return None
    tally["connected"] += 1
    return peer


def _hold(peers: list[tuple[socket.socket, Opening]], drip: bool, tally: Counter[str]) -> None:
    """Send the openings, in two parts or byte by byte, and stay until HOLD_S is over."""
    end_s = time.monotonic() + HOLD_S
    at = 0
    while peers and time.monotonic() < end_s:
        for peer, (first, second) in peers:
            part = (first + second)[at : at + 1] if drip else (first, second)[at] if at < 2 else b""
            with suppress(OSError):
                peer.send(part)
        at += 1
        time.sleep(0.05)
    for peer, _ in peers:
        peer.setblocking(False)
        tally["hung_up"] += _is_closed(peer)


def _is_closed(peer: socket.socket) -> bool:
    """Whether the other end closed it; what it sent before is read and left."""
    try:
        while data := peer.recv(1 << 16):
            del data
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


OUTSIDERS: dict[str, Attack] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        connects,
        port_scan,
        garbage,
        wrong_mechanism,
        truncated_curve,
        curve_hello_flood,
        oversize,
        huge_subscription,
        subscription_flood,
        endless_message,
        half_open,
        slowloris,
        never_reads,
    )
}
INSIDERS: dict[str, Insider] = SUBSCRIBERS | ASKERS


def attack(name: str, address: Address, seed: int, count: int, keys: Keys | None = None) -> Counter[str]:
    """Any attack by its name; outsiders have no keys."""
    if name in OUTSIDERS:
        return OUTSIDERS[name](address, seed, count)
    return INSIDERS[name](address, seed, count, keys)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attack", choices=[*OUTSIDERS, *INSIDERS])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keys", metavar="SERVER,PUBLIC,SECRET", help="as --keys=..., for they may begin with -"
    )
    asked = parser.parse_args()
    keys = Keys(*asked.keys.split(",")) if asked.keys else None
    began_s = time.monotonic()
    tally = attack(asked.attack, (asked.host, asked.port), asked.seed, asked.count, keys)
    print(json.dumps({"attack": asked.attack, "seconds": round(time.monotonic() - began_s, 2), **tally}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
