"""Changes to JSON, msgpack and TOML that keep the outer form, so that they get past the parser."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from typing import Any

import msgpack
import tomli_w

TEXTS = (
    *("", "a", "\0", "..", "../..", "/etc/passwd", "a\nb", "Ü😀", "\ud800", "²", "a" * 300, "a" * 5000),
    *(
        "NaN",
        "1e999",
        "__class__",
        "self",
        "cameras",
        "_cli_parse_args",
        "tcp://*:0",
        "golden/../x",
        "\x1b[31m",
    ),
)
Mutator = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, left out, repeated or put in: the form is kept by luck only."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        size = rng.choice((1, 1, 1, 2, 4, rng.randint(1, 64)))
        match rng.randrange(5):
            case 0:
                changed[at : at + size] = rng.randbytes(min(size, len(changed) - at))
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 500))
            case 3:
                changed[at:at] = rng.choice((b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"[", b'"', b"9" * 400))
            case 4:
                del changed[at:]
    return bytes(changed)


def json_or_msgpack(data: bytes, rng: random.Random) -> bytes:
    try:
        tree, packed = json.loads(data), rng.random() < 0.3
    except (ValueError, RecursionError):
        try:
            tree, packed = msgpack.unpackb(data), rng.random() < 0.7
        except Exception:  # msgpack has several unrelated exceptions of its own
            return flipped(data, rng)
    tree = _changed(tree, rng)
    try:
        return msgpack.packb(tree) if packed else json.dumps(tree).encode()
    except (ValueError, OverflowError, TypeError, RecursionError):
        return flipped(data, rng)


def as_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_changed(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        return flipped(data, rng)


def as_toml(data: bytes, rng: random.Random) -> bytes:
    try:
        return tomli_w.dumps(_changed(tomllib.loads(data.decode()), rng)).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return flipped(data, rng)


def _changed(tree: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        tree = _change_one(tree, rng)
    return tree


def _change_one(node: Any, rng: random.Random) -> Any:
    """Walk down at random, and change what is there."""
    if isinstance(node, dict) and node and rng.random() < 0.85:
        key = rng.choice(list(node))
        match rng.randrange(12):
            case 0:
                return {name: value for name, value in node.items() if name != key}
            case 1:
                return {(rng.choice(TEXTS) if name == key else name): value for name, value in node.items()}
            case 2:
                return node | {rng.choice(TEXTS): _value(rng)}
            case _:
                return node | {key: _change_one(node[key], rng)}
    if isinstance(node, list) and node and rng.random() < 0.8:
        at = rng.randrange(len(node))
        match rng.randrange(6):
            case 0:
                return node[:at] + node[at + 1 :]
            case 1:
                times = 2 if isinstance(node[at], (dict, list)) else 300
                return node[:at] + [node[at]] * times + node[at:]
            case _:
                return [*node[:at], _change_one(node[at], rng), *node[at + 1 :]]
    if isinstance(node, (int, float)) and abs(node) < 1e300 and rng.random() < 0.3:
        return node + rng.choice((-1, 1, 0.5, -1000, 1e6))
    return _value(rng)


def _value(rng: random.Random) -> Any:
    """Something that a programmer did not think of."""
    match rng.randrange(8):
        case 0:
            return rng.choice(TEXTS)
        case 1:
            return rng.choice((0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1))
        case 2:
            return rng.choice((0.0, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 1.0000000001, 0.5))
        case 3:
            return rng.choice((None, True, False, [], {}, [[]], {"": None}))
        case 4:
            return _nested(rng)
        case 5:
            return 10 ** rng.choice((30, 309, 400, 4000))
        case 6:
            return [rng.choice((0, 1.5, "a", None))] * rng.choice((1, 4, 5000))
        case _:
            return rng.randint(-1000, 100_000)


def _nested(rng: random.Random) -> Any:
    node: Any = 1
    for _ in range(rng.choice((3, 100, 450, 900))):
        node = [node] if rng.random() < 0.5 else {"a": node}
    return node
