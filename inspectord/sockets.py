"""ZeroMQ server sockets: every option set before bind, and a clear error where an endpoint is taken."""

from __future__ import annotations

import errno
import os
import resource
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import zmq

from inspectord.errors import StateError
from inspectord.filelock import FileLock
from inspectord.zap import Gate

# Replay requests have 200 bytes, and our longest topic 103. The longest command of a CURVE handshake has 300.
LARGEST: dict[int, int] = {zmq.ROUTER: 4096, zmq.XPUB: 384}
REOPEN_S = 5.0
# umask: sockets are for the service's user and group. It is the whole process's, so folders keep their x.
OWN_GROUP = 0o007


def bound(
    context: zmq.Context[Any], kind: int, endpoint: str, setting: str, gate: Gate, stack: ExitStack
) -> zmq.Socket[Any]:
    """A bound socket, closed with the stack.

    Raises StateError naming the endpoint and the setting that chooses it.
    """
    _allow_many_files()
    lock = _lock(endpoint, setting)
    if lock is not None:
        stack.callback(lock.close)
    listener: zmq.Socket[Any] = context.socket(kind)
    stack.callback(listener.close)
    for option, value in _OPTIONS:
        listener.setsockopt(option, value)
    listener.setsockopt(zmq.MAXMSGSIZE, LARGEST[kind])
    if kind == zmq.XPUB:
        listener.setsockopt(zmq.XPUB_VERBOSER, 1)  # tell of every subscription, to count them
    gate.guard(listener, endpoint)
    if kind == zmq.XPUB and not listener.getsockopt(zmq.CURVE_SERVER):
        # libzmq takes in all subscriptions that wait while we send: with the default of 1000, one peer that
        # sends them without end held up a verdict for 3 s, with 2 for 5 ms. (ZAP's name of the peer is one.)
        # With CURVE they come slower than we take them in, and a flood costs 80 ms once, without a limit.
        listener.setsockopt(zmq.RCVHWM, 2)
    try:
        _bind(listener, endpoint)
    except zmq.ZMQError as error:
        raise StateError(_explain(endpoint, setting, error)) from error
    return listener


def turn_out(listener: zmq.Socket[Any], setting: str, lock: AbstractContextManager[Any]) -> None:
    """End every connection; the peers connect again, through the gate. The lock is only held for moments.

    Raises StateError where the endpoint can't be opened again.
    """
    with lock:
        endpoint = listener.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        listener.unbind(endpoint)  # its connections end with it
    end_s = time.monotonic() + REOPEN_S
    while True:
        try:
            with lock:
                return _bind(listener, endpoint)
        except zmq.ZMQError as error:  # another thread is still closing the old one: about 2 ms
            if error.errno != errno.EADDRINUSE or time.monotonic() > end_s:
                raise StateError(_explain(endpoint, setting, error)) from error
        time.sleep(0.002)


def _bind(listener: zmq.Socket[Any], endpoint: str) -> None:
    before = os.umask(OWN_GROUP) if endpoint.startswith("ipc://") else None
    try:
        listener.bind(endpoint)  # libzmq replaces the socket file that a killed daemon left
    finally:
        if before is not None:
            os.umask(before)


def _allow_many_files() -> None:
    """Each connection is a file, and libzmq spins on a full core while none can be accepted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_OPTIONS = (
    (zmq.LINGER, 1000),  # ms for the last verdicts to leave at shutdown
    (zmq.SNDHWM, 10_000),
    (zmq.RCVHWM, 0),  # no limit, see below; floods are noticed, and their senders turned out
    (zmq.HANDSHAKE_IVL, 2000),  # ms for a peer to say who it is
    # Off by default: without them a peer that lost power looks alive for hours. ZMTP's own heartbeats stay
    # off: libzmq 4.3.5 aborts where one is sent on a connection that broke while its queue was full (its
    # issue 4841). A peer's PING is answered by one, too: hence queues without a limit where that is bearable.
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.TCP_MAXRT, 6000),  # ms for it to acknowledge what we sent
)


def _explain(endpoint: str, setting: str, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{endpoint} is in use; stop the other program (ss -ltnp shows it) or change {setting}"
    return f"can't bind {endpoint} ({error.strerror}); change {setting}"


def _lock(endpoint: str, setting: str) -> FileLock | None:
    """Held while an ipc endpoint is ours: ZeroMQ would let a second daemon steal the path silently."""
    if not endpoint.startswith("ipc://"):
        return None
    path = Path(endpoint.removeprefix("ipc://"))
    if path.exists() and not path.is_socket():  # libzmq would delete it
        raise StateError(f"{path} is there and no socket; move it away or change {setting}")
    lock = path.with_name(f"{path.name}.lock")
    return FileLock(lock, f"{endpoint} is in use by another inspectord; stop it or change {setting}")
