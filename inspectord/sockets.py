"""ZeroMQ server sockets: every option set before bind, and a clear error where an endpoint is taken."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from inspectord.errors import StateError
from inspectord.filelock import FileLock

LARGEST_REQUEST = 64 * 1024  # subscriptions and requests are tiny; more is not meant for us


def bound(
    context: zmq.Context[Any], kind: int, endpoint: str, setting: str, stack: ExitStack
) -> zmq.Socket[Any]:
    """A bound socket, closed with the stack.

    Raises StateError naming the endpoint and the setting that chooses it.
    """
    lock = _lock(endpoint, setting)
    if lock is not None:
        stack.callback(lock.close)
    listener: zmq.Socket[Any] = context.socket(kind)
    stack.callback(listener.close)
    for option, value in _OPTIONS:
        listener.setsockopt(option, value)
    if kind == zmq.XPUB:
        listener.setsockopt(zmq.XPUB_VERBOSER, 1)  # tell of every subscription, to count them
    try:
        listener.bind(endpoint)
    except zmq.ZMQError as error:
        raise StateError(_explain(endpoint, setting, error)) from error
    return listener


_OPTIONS = (
    (zmq.LINGER, 1000),  # ms for the last verdicts to leave at shutdown
    (zmq.SNDHWM, 10_000),
    (zmq.RCVHWM, 1000),
    (zmq.MAXMSGSIZE, LARGEST_REQUEST),
    (zmq.HANDSHAKE_IVL, 5000),
    # Off by default: without them a peer that lost power looks alive for hours.
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.HEARTBEAT_IVL, 2000),
    (zmq.HEARTBEAT_TIMEOUT, 6000),
    (zmq.HEARTBEAT_TTL, 6000),
)


def _explain(endpoint: str, setting: str, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{endpoint} is in use; stop the other program (ss -ltnp shows it) or change {setting}"
    return f"can't bind {endpoint} ({error.strerror}); change {setting}"


def _lock(endpoint: str, setting: str) -> FileLock | None:
    """Held while an ipc endpoint is ours: ZeroMQ would let a second daemon steal the path silently."""
    if not endpoint.startswith("ipc://"):
        return None
    path = Path(endpoint.removeprefix("ipc://") + ".lock")
    return FileLock(path, f"{endpoint} is in use by another inspectord; stop it or change {setting}")
