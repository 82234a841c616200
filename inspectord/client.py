"""A client for gateways and PLC bridges: every verdict once and in order, and silence made loud.

It subscribes first, then asks for a snapshot, and from there counts: a gap in seq is fetched from the
daemon's replay socket and comes marked historical (the Clone pattern of the ZeroMQ guide, chapter 5).
Needs pyzmq and the standard library, neither numpy nor OpenVINO.

    with Client("tcp://box:5570", "tcp://box:5571", keys=Keys.load("/etc/gateway/keys")) as client:
        for event in client:
            match event:
                case Inspected(message) if not message.historical: ...
                case Silence(): ...  # no heartbeat: the line must treat parts as not inspected
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import zmq

from inspectord.ask import Requests, connecting
from inspectord.errors import MessageError, StateError
from inspectord.keys import Keys
from inspectord.messages import HEARTBEAT_SCHEMA, VerdictMessage, as_historical, from_table, unpack

REDIAL_S = 3.0  # of silence, and between two tries
MOST_REPLAYED = 20_000  # verdicts fetched for one gap; of a longer absence the older part is a Gap
ANSWER_S, PAUSE_S = 2.0, 0.5  # for a reply; after none, before the daemon is asked again, if it is heard
MOST_UNANSWERED = 3  # requests for one message's sake; then what they asked for is a Gap
DEAF_S = 10.0  # after that, in which what is missing is a Gap without asking: verdicts must go on


@dataclass(frozen=True, slots=True)
class Inspected:
    """A verdict; message.historical is set where it had to be fetched again."""

    message: VerdictMessage


@dataclass(frozen=True, slots=True)
class Gap:
    """Verdicts that can't be had any more; their parts count as not inspected."""

    camera: str
    boot_id: str
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The daemon was started afresh; seq begins at 1 again."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Silence:
    """No heartbeat for silent_ms."""

    silent_ms: float


@dataclass(frozen=True, slots=True)
class Back:
    """The first heartbeat after a Silence."""

    silent_ms: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The daemon's state, as often as it is sent."""

    state: dict[str, Any]


Event: TypeAlias = Inspected | Gap | Restart | Silence | Back | Heartbeat


class Client:
    """Not for more than one thread. camera=None takes all cameras of the endpoint; keys=None is for ipc://
    and for daemons in plain mode.

    from_start also gives what this start of the daemon decided before, fetched from it and marked historical.

    Raises StateError in start() where no daemon answers within connect_s.
    """

    def __init__(
        self,
        verdicts: str,
        replay: str,
        *,
        keys: Keys | None = None,
        camera: str | None = None,
        heartbeat_timeout_ms: float = 1000.0,
        connect_s: float = 5.0,
        receive_depth: int = 10_000,
        from_start: bool = False,
    ) -> None:
        self.boot_id = ""
        self._verdicts, self._replay, self._keys = verdicts, replay, keys
        self._camera, self._timeout_ms, self._connect_s = camera, heartbeat_timeout_ms, connect_s
        self._receive_depth, self._from_start = receive_depth, from_start
        self._started = False

    def __enter__(self) -> Client:
        if not self._started:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        """Events without end; heartbeats are left out (see next())."""
        while True:
            event = self.next(1.0)
            if event is not None and not isinstance(event, Heartbeat):
                yield event

    def start(self) -> None:
        """Subscribe, then take the daemon's position; what comes after that is given out."""
        self._seen: dict[str, int] = {}  # camera -> last seq given out
        self._held: deque[VerdictMessage | dict[str, Any]] = deque()  # received, not followed yet
        self._unanswered, self._ask_after_s = 0, 0.0  # requests for the first of these
        self._deaf_until_s, self._behind = 0.0, False
        self._events: deque[Event] = deque()
        self._silent = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._subscribed()
        self._requests = Requests(self._context, self._replay, self._keys)
        try:
            state = self._requests.ask({"what": "snapshot"}, self._connect_s)["state"]
        except BaseException:
            self.close()
            raise
        self.boot_id = state["boot_id"]
        self._seen = {
            name: 0 if self._from_start else camera["last_seq"] for name, camera in state["cameras"].items()
        }
        self._heard_s = time.monotonic()
        self._started = True

    def close(self) -> None:
        self._started = False
        self._context.destroy(linger=0)

    def next(self, timeout_s: float) -> Event | None:
        """The next event, or None after timeout_s, or later where the daemon is asked meanwhile."""
        end_s = time.monotonic() + timeout_s
        while not self._events:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return None
            # Short waits, so that silence is noticed when it is due and not at the end of timeout_s.
            if self._socket.poll(max(1, round(min(left_s * 1000, self._timeout_ms / 4)))):
                self._receive()
            if not self._socket.poll(0):  # else heartbeats may wait behind a long fill
                self._notice_silence()
                self._behind = bool(self._held)
        return self._events.popleft()

    def _subscribed(self) -> zmq.Socket[Any]:
        self._dialled_s = time.monotonic()
        socket = connecting(self._context, zmq.SUB, self._keys)
        socket.setsockopt(zmq.RCVHWM, self._receive_depth)
        for topic in ("verdict/", "heartbeat/"):
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(self._verdicts)
        return socket

    def _receive(self) -> None:
        """One message from the wire; what is not the daemon's is left out."""
        try:
            table = unpack(self._socket.recv_multipart()[-1])
            if table.get("schema") == HEARTBEAT_SCHEMA:
                self._notice_heartbeat()
                self._held.append(table)
            else:
                self._held.append(from_table(table))
        except (MessageError, LookupError, TypeError, AttributeError):
            return
        if time.monotonic() >= self._ask_after_s:
            self._catch_up()

    def _catch_up(self) -> None:
        """Follow what was received, in its order.

        A daemon that does not answer, as one that is just stopping, is asked again when a later message
        comes: the next start has the missing verdicts in its journal. Verdicts that wait for that, here or
        on the wire, are historical.
        """
        while self._held:
            message, waited = self._held[0], self._behind or len(self._held) > 1
            try:
                if isinstance(message, VerdictMessage):
                    self._on_verdict(as_historical(message) if waited else message)
                else:
                    self._on_heartbeat(message)
            except StateError:
                self._unanswered += 1
                self._ask_after_s = time.monotonic() + PAUSE_S
                return
            except (LookupError, TypeError, AttributeError):
                pass  # no heartbeat of a daemon
            self._held.popleft()
            self._unanswered = 0

    def _on_verdict(self, message: VerdictMessage) -> None:
        if not self._wants(message.camera):
            return
        self._follow_start(message.boot_id)
        seen = self._seen.get(message.camera, 0)
        if message.seq <= seen:
            return  # already in the snapshot, or already replayed
        if message.seq > seen + 1:
            self._fill(message.camera, message.seq - 1)
        self._give(message)

    def _on_heartbeat(self, state: dict[str, Any]) -> None:
        self._follow_start(state["boot_id"])
        for name, camera in state["cameras"].items():
            # Sent on the same socket after the verdict it names: what is missing now was lost.
            if self._wants(name) and camera["last_seq"] > self._seen.setdefault(name, 0):
                self._fill(name, camera["last_seq"])
        self._events.append(Heartbeat(state))

    def _notice_heartbeat(self) -> None:
        silent_ms = (time.monotonic() - self._heard_s) * 1000
        self._heard_s = time.monotonic()
        if self._silent:
            self._silent = False
            self._events.append(Back(silent_ms))

    def _notice_silence(self) -> None:
        now_s = time.monotonic()
        silent_ms = (now_s - self._heard_s) * 1000
        if not self._silent and silent_ms > self._timeout_ms:
            self._silent = True
            self._events.append(Silence(silent_ms))
        if self._silent and now_s - max(self._heard_s, self._dialled_s) > REDIAL_S:
            # libzmq never calls again where somebody without the right keys answered once.
            self._socket.close(0)
            self._socket = self._subscribed()

    def _follow_start(self, boot_id: str) -> None:
        """On a new boot_id: the end of the old start comes from the journal, then seq begins anew."""
        if boot_id == self.boot_id:
            return
        for camera in list(self._seen):
            if self._wants(camera):
                self._fill(camera, None)
        self.boot_id, self._seen, self._deaf_until_s = boot_id, {}, 0.0
        self._events.append(Restart(boot_id))

    def _fill(self, camera: str, last: int | None) -> None:
        """Replay what is missing up to last (None: as far as known); what can't be had is a Gap.

        Raises StateError where the daemon does not answer and is to be asked again.
        """
        if last is not None and time.monotonic() < self._deaf_until_s:
            self._skip_to(camera, last)
            return
        if last is not None:
            self._skip_to(camera, last - MOST_REPLAYED)
        try:
            for message in islice(self._replayed(camera, last), MOST_REPLAYED):
                self._skip_to(camera, message.seq - 1)
                self._give(message)
        except StateError:
            self._behind = True
            if self._unanswered + 1 < MOST_UNANSWERED:
                raise
            self._deaf_until_s = time.monotonic() + DEAF_S
        if last is not None:
            self._skip_to(camera, last)

    def _skip_to(self, camera: str, last: int) -> None:
        """What lacks up to last is a Gap."""
        first = self._seen.get(camera, 0) + 1
        if first <= last:
            self._events.append(Gap(camera, self.boot_id, first, last))
            self._seen[camera] = last

    def _replayed(self, camera: str, last: int | None) -> Iterator[VerdictMessage]:
        """From the first that is missing to a reply that can't be read. Raises StateError for none."""
        next_seq: int | None = self._seen.get(camera, 0) + 1
        while next_seq is not None:
            request = {"what": "replay", "camera": camera, "boot_id": self.boot_id}
            try:
                reply = self._requests.ask(request | {"from_seq": next_seq, "to_seq": last}, ANSWER_S)
                verdicts = [as_historical(from_table(table)) for table in reply["verdicts"]]
                next_seq = reply["next_seq"]
            except MessageError:
                return
            yield from verdicts

    def _give(self, message: VerdictMessage) -> None:
        self._seen[message.camera] = message.seq
        self._events.append(Inspected(message))

    def _wants(self, camera: str) -> bool:
        return self._camera is None or camera == self._camera
