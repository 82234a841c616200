"""Ask a running daemon: one request, one reply, over its replay socket."""

from __future__ import annotations

from typing import Any

import zmq

from inspectord.errors import MessageError, StateError
from inspectord.messages import pack, unpack


class Requests:
    """A DEALER that gives up after a time limit and then starts on a fresh connection."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self._context, self._endpoint = context, endpoint
        self._socket: zmq.Socket[Any] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The reply. Raises StateError where none comes, MessageError where the daemon refuses."""
        socket = self._socket or self._connected()
        socket.send_multipart([b"", pack(request)])
        if not socket.poll(max(1, round(timeout_s * 1000))):
            # A late reply must not be taken for the answer to the next request.
            self.close()
            raise StateError(
                f"no inspectord answers at {self._endpoint}; start it (systemctl start inspectord), "
                "or give its address with --replay or --config"
            )
        reply = unpack(socket.recv_multipart()[-1])
        if "error" in reply:
            raise MessageError(f"{self._endpoint} refused the request: {reply['error']}")
        return reply

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _connected(self) -> zmq.Socket[Any]:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(self._endpoint)
        return self._socket


def ask_once(endpoint: str, request: dict[str, Any], timeout_s: float = 2.0) -> dict[str, Any]:
    """One request on a context of its own; see Requests.ask."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        return Requests(context, endpoint).ask(request, timeout_s)
    finally:
        context.destroy(linger=0)
