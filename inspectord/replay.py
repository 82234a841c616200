"""A ROUTER that answers: what is the state now, and what were the verdicts that I missed?

Requests and replies are JSON tables, one reply per request, from REQ or DEALER:
    {"what": "status"}
    {"what": "snapshot"}  the state, and the last verdict of each camera
    {"what": "replay", "camera": NAME, "boot_id": HEX, "from_seq": N, "to_seq": N}
        boot_id null: this start; to_seq null: to the last one;
        up to CHUNK verdicts, marked historical, in order; ask again from next_seq until that is null
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog
import zmq

from inspectord.errors import MessageError
from inspectord.health import Health, spawn
from inspectord.journal import read_range
from inspectord.messages import REPLY_SCHEMA, as_historical, decode, pack, to_table, unpack
from inspectord.publish import History
from inspectord.settings import Publish
from inspectord.sockets import bound

CHUNK = 256  # verdicts in a reply, which stays well below messages.LARGEST_BYTES
LARGEST_SEQ = 2**62
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
        except (MessageError, ValueError, sqlite3.Error, OSError) as error:
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
        camera, boot_id = str(request.get("camera")), str(request.get("boot_id") or self._boot_id)
        if camera not in self._histories:
            raise ValueError(f"no camera {camera[:60]!r}; cameras: {', '.join(self._histories)}")
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
        self, context: zmq.Context[Any], settings: Publish, replayer: Replayer, health: Health
    ) -> None:
        self._replayer, self._health = replayer, health
        self._stopping = threading.Event()
        with ExitStack() as stack:
            self._socket = bound(context, zmq.ROUTER, settings.replay, "publish.replay", stack)
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

    def _serve(self) -> None:
        """One request; its envelope (with the empty frame of a REQ) goes back as it came."""
        try:
            *envelope, request = self._socket.recv_multipart(zmq.NOBLOCK)
            self._socket.send_multipart([*envelope[:2], self._replayer.answer(request)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("a reply was not sent", error=str(error))


def _historical(payload: bytes) -> Table:
    return to_table(as_historical(decode(payload)))


def _seq(value: Any, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SEQ:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it is a whole number from 1")
    return value
