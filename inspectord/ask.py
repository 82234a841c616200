"""Ask a running daemon: one request, one reply, over its replay socket."""

from __future__ import annotations

import time
from typing import Any

import zmq

from inspectord.errors import MessageError, StateError
from inspectord.keys import Keys
from inspectord.messages import LARGEST_BYTES, pack, unpack

# A daemon's box that lost power is given up after 6 s, and dialled again. Not by ZMTP's heartbeats: libzmq
# 4.3.5 aborts where one is due on a connection that broke while its queue was full (its issue 4841).
KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 3),
    (zmq.TCP_KEEPALIVE_INTVL, 1),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)


class Requests:
    """A DEALER that gives up after a time limit and then starts on a fresh connection."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, keys: Keys | None = None) -> None:
        self._context, self._endpoint, self._keys = context, endpoint, keys
        self._socket: zmq.Socket[Any] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The reply. Raises StateError where none comes, MessageError where the daemon refuses."""
        end_s = time.monotonic() + timeout_s
        while True:
            reply = self._reply(request, end_s)
            wait_s = reply.get("retry_after_s")
            if "error" not in reply:
                return reply
            if not isinstance(wait_s, float) or time.monotonic() + wait_s > end_s:
                raise MessageError(f"{self._endpoint} refused the request: {reply['error']}")
            time.sleep(wait_s)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _reply(self, request: dict[str, Any], end_s: float) -> dict[str, Any]:
        socket = self._sent([b"", pack(request)])
        if not socket.poll(max(1, round((end_s - time.monotonic()) * 1000))):
            # A late reply must not be taken for the answer to the next request.
            self.close()
            raise StateError(
                f"no inspectord answers at {self._endpoint}{_hint(self._endpoint, self._keys)}; "
                "start it (inspectord run, or systemctl start inspectord@STATION), "
                "or give its address with --replay or --config"
            )
        return unpack(socket.recv_multipart()[-1])

    def _sent(self, parts: list[bytes]) -> zmq.Socket[Any]:
        """The socket that they went to, a fresh one where the old one has no connection any more.

        Where somebody without the right keys answered once, libzmq never calls again: a send would never end.
        """
        socket = self._socket or self._connected()
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            self.close()
            socket = self._connected()
            socket.send_multipart(parts, zmq.NOBLOCK)
        return socket

    def _connected(self) -> zmq.Socket[Any]:
        self._socket = connecting(self._context, zmq.DEALER, self._keys)
        self._socket.connect(self._endpoint)
        return self._socket


def connecting(context: zmq.Context[Any], kind: int, keys: Keys | None) -> zmq.Socket[Any]:
    """A client's socket, to be connected; what no daemon would send is not taken."""
    socket: zmq.Socket[Any] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    for option, value in KEEPALIVE:
        socket.setsockopt(option, value)
    if keys is not None:
        keys.apply(socket)
    return socket


def ask_once(
    endpoint: str, request: dict[str, Any], timeout_s: float = 2.0, keys: Keys | None = None
) -> dict[str, Any]:
    """One request on a context of its own; see Requests.ask."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        return Requests(context, endpoint, keys).ask(request, timeout_s)
    finally:
        context.destroy(linger=0)


def _hint(endpoint: str, keys: Keys | None) -> str:
    """The daemon closes the door without a word: to a stranger it does not even say that it is there."""
    if not endpoint.startswith("tcp://"):
        return ""
    if keys is None:
        return " without a key (it wants one unless security.mode is plain)"
    return ", or it does not allow this key, or server.key is not its own, or it runs in plain mode"
