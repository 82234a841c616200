"""A ROUTER that answers: what is the state now, and what were the verdicts that I missed?

Requests and replies are JSON tables, one reply per request, from REQ or DEALER:
    {"what": "status"}
    {"what": "snapshot"}  the state, and the last verdict of each camera
    {"what": "replay", "camera": NAME, "boot_id": HEX, "from_seq": N, "to_seq": N}
        boot_id null: this start; to_seq null: to the last one;
        up to CHUNK verdicts, marked historical, in order; ask again from next_seq until that is null
A reply with "error" may have "retry_after_s": this peer asked too often, and the same request works later.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import structlog
import zmq

from inspectord.errors import InspectordError
from inspectord.health import Health, spawn
from inspectord.journal import read_range
from inspectord.messages import REPLY_SCHEMA, as_historical, decode, pack, to_table, unpack
from inspectord.publish import History
from inspectord.rates import Rates
from inspectord.settings import Publish
from inspectord.sockets import bound, turn_out
from inspectord.zap import Gate, peer_of

CHUNK = 256  # verdicts in a reply, which stays well below messages.LARGEST_BYTES
LARGEST_SEQ = 2**62
LONGEST_TEXT = 64  # of a camera's name or a boot_id
# A client that fetches 20,000 missed verdicts asks 80 times, as fast as it is answered.
REQUESTS_PER_S, REQUESTS_AT_ONCE = 50.0, 200
TOO_MANY_S, TOO_MANY_AT_ONCE = 0.001, 1000  # a pause after each too many; after so many it is turned out
TOO_MANY = pack(
    {"schema": REPLY_SCHEMA, "error": "too many requests; wait and ask again", "retry_after_s": 0.1}
)
log = structlog.get_logger()

Table = dict[str, Any]


class Replayer:
    """Answers one request, as a pure function of histories and journal."""

    def __init__(
        self,
        boot_id: str,
        histories: Mapping[str, History],
        journal: Path,
        describe: Callable[[], Table],
    ) -> None:
        self._boot_id, self._histories, self._journal, self._describe = boot_id, histories, journal, describe

    def answer(self, request: bytes) -> bytes:
        """The reply to any bytes at all; what is no request is answered with an error."""
        try:
            table = self._answer(unpack(request))
        except (InspectordError, ValueError, sqlite3.Error, OSError) as error:
            table = {"error": str(error)[:300]}
        return pack({"schema": REPLY_SCHEMA} | table)

    def _answer(self, request: Table) -> Table:
        match request.get("what"):
            case "status":
                return {"what": "status", "state": self._describe()}
            case "snapshot":
                return {"what": "snapshot", "state": self._describe(), "last": self._last_verdicts()}
            case "replay":
                return self._replay(request)
        raise ValueError('unknown request; "what" is "status", "snapshot" or "replay"')

    def _last_verdicts(self) -> dict[str, Table]:
        found = {name: history.get(history.last_seq) for name, history in self._histories.items()}
        return {name: _historical(payload) for name, payload in found.items() if payload is not None}

    def _replay(self, request: Table) -> Table:
        camera = _text(request.get("camera"), "camera", "")
        boot_id = _text(request.get("boot_id"), "boot_id", self._boot_id)
        if camera not in self._histories:
            raise ValueError(f"no camera {camera!r}; cameras: {', '.join(self._histories)}")
        first = _seq(request.get("from_seq"), "from_seq", 1)
        last = _seq(request.get("to_seq"), "to_seq", LARGEST_SEQ)
        if boot_id == self._boot_id:
            verdicts, next_seq = self._this_start(camera, first, min(last, self._histories[camera].last_seq))
        else:
            verdicts, next_seq = self._journaled(boot_id, camera, first, last)
        return {
            "what": "replay",
            "camera": camera,
            "boot_id": boot_id,
            "verdicts": verdicts,
            "next_seq": next_seq,
        }

    def _this_start(self, camera: str, first: int, last: int) -> tuple[list[Table], int | None]:
        """From memory; what is no longer there from the journal."""
        end = min(last, first + CHUNK - 1)
        found = {seq: self._histories[camera].get(seq) for seq in range(first, end + 1)}
        missing = [seq for seq, payload in found.items() if payload is None]
        if missing:
            lines = read_range(self._journal, self._boot_id, camera, missing[0], missing[-1], CHUNK)
            for line in lines:
                found[json.loads(line)["seq"]] = line.encode()
        verdicts = [_historical(payload) for _, payload in sorted(found.items()) if payload is not None]
        return verdicts, end + 1 if end < last else None

    def _journaled(self, boot_id: str, camera: str, first: int, last: int) -> tuple[list[Table], int | None]:
        lines = read_range(self._journal, boot_id, camera, first, last, CHUNK)
        verdicts = [_historical(line.encode()) for line in lines]
        return verdicts, verdicts[-1]["seq"] + 1 if len(verdicts) == CHUNK else None


class Replay:
    """The ROUTER socket and its thread."""

    def __init__(
        self, context: zmq.Context[Any], settings: Publish, replayer: Replayer, gate: Gate, health: Health
    ) -> None:
        self._replayer, self._health = replayer, health
        self._gate, self._epoch = gate, gate.epoch
        self._rates = Rates(REQUESTS_PER_S, REQUESTS_AT_ONCE)
        self._patience = Rates(REQUESTS_PER_S, TOO_MANY_AT_ONCE)
        self._stopping = threading.Event()
        with ExitStack() as stack:
            self._socket = bound(context, zmq.ROUTER, settings.replay, "publish.replay", gate, stack)
            self._opened = stack.pop_all()
        self._thread = spawn("replay", self._run, health)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        with self._opened:  # whatever happens: an open socket would hold up the daemon's end for ever
            while not self._stopping.is_set():
                self._health.beat("replay")
                if self._socket.poll(200):
                    self._serve()
                if self._epoch != self._gate.epoch:
                    self._epoch = self._gate.epoch
                    turn_out(self._socket, "publish.replay", nullcontext())

    def _serve(self) -> None:
        """One request; its envelope (with the empty frame of a REQ) goes back as it came."""
        try:
            *envelope, request = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            self._health.excuse("replay")  # it may read the journal from a disk that hangs
            reply = self._reply(request)
            self._socket.send_multipart([*envelope[:2], reply], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("a reply was not sent", error=str(error))

    def _reply(self, request: zmq.Frame) -> bytes:
        peer = peer_of(request)
        if self._rates.take(peer):
            return self._replayer.answer(request.bytes)
        if not self._patience.take(peer):
            self._gate.turn_out(f"{peer} floods us with requests", peer)
        # ZeroMQ serves connections in turn: a flood costs the others this pause, and the line nearly nothing.
        time.sleep(TOO_MANY_S)
        return TOO_MANY


def _historical(payload: bytes) -> Table:
    return to_table(as_historical(decode(payload)))


def _text(value: Any, name: str, default: str) -> str:
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError(f"{name} is no text of at most {LONGEST_TEXT} characters")
    return value


def _seq(value: Any, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SEQ:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it is a whole number from 1")
    return value
