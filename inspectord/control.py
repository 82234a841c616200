"""The socket between the daemon and a camera process: settings down, small JSON status packets up."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any


class Control:
    """The camera's end. Sending never waits: a status that finds no room is out of date with the next one."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._stopped = False

    @classmethod
    def attach(cls, fd: int) -> Control:
        return cls(socket.socket(fileno=fd))

    @property
    def closed(self) -> bool:
        """True once the daemon closed its end or is gone, or stop() was called."""
        try:
            self._stopped = self._stopped or not self._end.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            pass
        except ConnectionResetError:  # closed before it read our last packets
            self._stopped = True
        return self._stopped

    def stop(self) -> None:
        """As if the daemon had closed its end; safe in a signal handler."""
        self._stopped = True

    def receive_settings(self) -> str | None:
        """The first packet, or None where the daemon is gone."""
        return self._end.recv(1 << 20).decode() or None

    def send(self, event: str, **fields: Any) -> None:
        """One status packet; lost where the daemon reads none or is gone."""
        packet = json.dumps({"event": event, **fields}).encode()
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class CameraLine:
    """The daemon's end."""

    def __init__(self) -> None:
        self._end, self._camera_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def camera_fd(self) -> int:
        """To be inherited by the camera process; then let go with give_away()."""
        return self._camera_end.fileno()

    def give_away(self, settings: str) -> None:
        """Send the settings and close our copy of the camera's end, so that its death closes the line."""
        self._end.send(settings.encode())
        self._camera_end.close()

    def packets(self) -> list[dict[str, Any]]:
        """All packets that arrived since; never waits."""
        found = []
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while packet := self._end.recv(1 << 16, socket.MSG_DONTWAIT):
                found.append(json.loads(packet))
        return found

    def close(self) -> None:
        self._end.close()
        self._camera_end.close()
