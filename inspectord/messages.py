"""The message of a verdict: small, frozen, versioned; needs only the standard library, for gateways."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from importlib.util import find_spec
from typing import Any, Literal

from inspectord.errors import MessageError, SettingsError

SCHEMA = "inspectord/verdict/1"
HEARTBEAT_SCHEMA = "inspectord/heartbeat/1"
REPLY_SCHEMA = "inspectord/reply/1"
LARGEST_BYTES = 1 << 20  # far above any real message; what is larger is not ours

Encoding = Literal["json", "msgpack"]
Box = tuple[int, int, int, int]


class Verdict(StrEnum):
    PASS = "PASS"
    REJECT = "REJECT"
    NOT_INSPECTED = "NOT_INSPECTED"


class Reason(StrEnum):
    """Why; one word that a PLC program can compare."""

    WITHIN_LIMIT = "within_limit"
    OVER_LIMIT = "over_limit"
    LATE = "late"
    NOT_FINITE = "not_finite"
    INFERENCE_FAILED = "inference_failed"
    INCOMPLETE = "incomplete"
    FRAME_LOST = "frame_lost"
    DISPLACED = "displaced"
    WRONG_SHAPE = "wrong_shape"
    UNREADABLE = "unreadable"
    CAMERA_LOST = "camera_lost"
    STOPPING = "stopping"
    NOT_JOURNALED = "not_journaled"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictMessage:
    """One trigger's verdict. A line acts on verdict alone; anything but PASS is a reject.

    Times ending in _ns count nanoseconds; trigger_id, frame_id and encoder are -1 where unknown.
    """

    schema: str = SCHEMA
    station: str
    camera: str
    boot_id: str  # of this start of the daemon: 32 hexadecimal digits
    seq: int  # 1, 2, 3, ... without a gap, per boot_id and camera
    part_id: str
    trigger_id: int
    frame_id: int
    encoder: int  # counts at exposure
    verdict: Verdict
    reason: Reason
    score: float | None  # None: not scored, or not finite
    limit: float
    boxes: tuple[Box, ...]  # x, y, width, height in frame pixels, largest peak first
    recipe: str  # product/version, for people
    recipe_hash: str  # for machines
    model_hash: str
    t_exposure_ns: int  # the camera's clock; 0 where it has none
    t_fetch_ns: int  # CLOCK_MONOTONIC of the box, as is t_decided_ns
    t_decided_ns: int
    decided_at: str  # wall clock, ISO 8601 in UTC
    inference_ms: float | None  # None: not inferred
    latency_ms: float  # t_fetch to t_decided
    deadline_ms: float
    simulated: bool  # from a replay or a simulated camera
    historical: bool = False  # a repeat of an old verdict: it must never move an actuator


_FIELDS = tuple(field.name for field in fields(VerdictMessage))
_TEXT = (
    "schema",
    "station",
    "camera",
    "boot_id",
    "part_id",
    "recipe",
    "recipe_hash",
    "model_hash",
    "decided_at",
)
_WHOLE = ("seq", "trigger_id", "frame_id", "encoder", "t_exposure_ns", "t_fetch_ns", "t_decided_ns")
_REAL = ("limit", "latency_ms", "deadline_ms")
_REAL_OR_NONE = ("score", "inference_ms")
_FLAGS = ("simulated", "historical")


def verdict_topic(station: str, camera: str, verdict: Verdict) -> bytes:
    return f"verdict/{station}/{camera}/{verdict}".encode()


def heartbeat_topic(station: str) -> bytes:
    return f"heartbeat/{station}".encode()


def check_encoding(encoding: Encoding) -> None:
    """Raises SettingsError where the encoding's package is not installed."""
    if encoding == "msgpack" and find_spec("msgpack") is None:
        raise SettingsError(
            'publish.encoding is "msgpack" and the msgpack package is not installed; '
            "`pip install msgpack`, or use json"
        )


def pack(table: dict[str, Any], encoding: Encoding = "json") -> bytes:
    """A table as bytes. Raises ValueError for NaN and infinities, which JSON can't say."""
    if encoding == "msgpack":
        import msgpack

        packed: bytes = msgpack.packb(table)
        return packed
    return json.dumps(table, separators=(",", ":"), allow_nan=False).encode()


def unpack(payload: bytes) -> dict[str, Any]:
    """The table in a payload of either encoding. Raises MessageError on anything else."""
    if len(payload) > LARGEST_BYTES:
        raise MessageError(f"a message of {len(payload)} bytes is not from inspectord; check the endpoint")
    try:
        table = _loader(payload)(payload)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not a message of inspectord ({error}); check the endpoint") from error
    if not isinstance(table, dict):
        raise MessageError("not a message of inspectord (no table inside); check the endpoint")
    return table


def _loader(payload: bytes) -> Callable[[bytes], Any]:
    if payload[:1] in (b"{", b"[", b" ", b"\n", b"\t", b""):
        return lambda data: json.loads(data, parse_constant=_no_constant)
    check_encoding("msgpack")
    import msgpack

    def load(data: bytes) -> Any:
        try:
            return msgpack.unpackb(data)
        except Exception as error:  # msgpack has several unrelated exceptions of its own
            raise ValueError(f"{type(error).__name__}") from error

    return load


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def to_table(message: VerdictMessage) -> dict[str, Any]:
    return {name: getattr(message, name) for name in _FIELDS}


def encode(message: VerdictMessage, encoding: Encoding = "json") -> bytes:
    """The message as bytes; a score that is not finite is sent as null."""
    table = to_table(message)
    if message.score is not None and not math.isfinite(message.score):
        table["score"] = None
    return pack(table, encoding)


def decode(payload: bytes) -> VerdictMessage:
    """The message in a payload. Raises MessageError on anything that is not exactly a verdict."""
    return from_table(unpack(payload))


def from_table(table: dict[str, Any]) -> VerdictMessage:
    """A table as a message. Raises MessageError naming the first field that is wrong."""
    if table.get("schema") != SCHEMA:
        raise MessageError(
            f"a message of schema {str(table.get('schema'))[:60]!r}, this client reads {SCHEMA!r}; "
            "use the same version of inspectord on both sides"
        )
    if table.keys() != set(_FIELDS):
        odd = sorted(str(name)[:40] for name in table.keys() ^ set(_FIELDS))
        raise MessageError(f"a verdict with missing or unknown fields: {', '.join(odd[:5])}")
    for name, value in table.items():
        if not _is_right(name, value):
            raise MessageError(f"a verdict whose {name} is {reprlib.repr(value)}")
    boxes = tuple((x, y, width, height) for x, y, width, height in table["boxes"])
    verdict, reason = Verdict(table["verdict"]), Reason(table["reason"])
    return VerdictMessage(**(table | {"boxes": boxes, "verdict": verdict, "reason": reason}))


def as_historical(message: VerdictMessage) -> VerdictMessage:
    return replace(message, historical=True)


def _is_right(name: str, value: Any) -> bool:
    if name in _TEXT:
        return _is_text(value)
    if name in _WHOLE:
        return _is_whole(value)
    if name in _REAL or (name in _REAL_OR_NONE and value is not None):
        return math.isfinite(value) if isinstance(value, float) else _is_whole(value)
    if name in _FLAGS:
        return isinstance(value, bool)
    if name == "verdict":
        return isinstance(value, str) and value in set(Verdict)
    if name == "reason":
        return isinstance(value, str) and value in set(Reason)
    if name == "boxes":
        return isinstance(value, (list, tuple)) and all(_is_box(box) for box in value)
    return value is None


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(_is_whole(item) for item in value)


def _is_whole(value: Any) -> bool:
    """Of 64 bits: JSON has larger numbers, but neither msgpack nor a PLC has."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    """JSON can smuggle in half a surrogate pair, which no terminal, journal or msgpack takes."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
