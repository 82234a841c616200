"""Who may connect: CURVE keys and an allow-list for tcp://, and ZAP, ZeroMQ's doorkeeper, always on.

Without ZAP, libzmq lets in whoever holds the server's public key. A socket here lets nobody in while its
doorkeeper does not answer, and no peer that speaks ZMTP 1 or 2, which know no security. In plain mode ZAP
admits everybody, and so tells who they are. ipc:// is guarded by file permissions instead.

libzmq asks only at a handshake. So when a key was removed, the sockets turn everybody out; those who may
come back do so within a second, and ask for what they missed. Peers that fail before their key is looked at
(no CURVE, another server's key, garbage) are not among the denied: libzmq closes these by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import zmq
from zmq.auth import Authenticator
from zmq.utils import z85

from inspectord.errors import SettingsError
from inspectord.growth import Growth
from inspectord.health import Health, spawn
from inspectord.keys import read_public, server_keys
from inspectord.settings import Publish, Security

DOMAIN = "inspectord"  # "*" would not match it
LOOK_S = 1.0  # for new and removed keys
LOG_S = 10.0  # one line about denied clients in so many seconds
REFUSED_S = 60.0  # a client that floods the daemon stays out so long
PAUSE_S = 10.0  # between two turns of everybody, for peers without a key
ZAP_ENFORCE_DOMAIN = 93  # pyzmq 27 has no name for it
log = structlog.get_logger()


class AllowList:
    """The clients' public keys in a folder, one NAME.key each, read again when a file changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}  # public key -> name
        self._stamps: dict[str, tuple[int, int, int]] | None = None

    def look(self) -> bool:
        """Take in what changed; True where a key is no longer allowed."""
        try:
            stamps = self._now()
        except OSError as error:  # or a file that vanishes just now, as the next round will see
            log.warning("can't look into the folder of allowed keys", reason=str(error))
            return False
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        before, kept = self.names, {name: key for key, name in self.names.items()}
        names = [file.removesuffix(".key") for file in sorted(stamps)]
        keys = {name: self._read(name) or kept.get(name) for name in names}
        self.names = {key: name for name, key in keys.items() if key is not None}
        log.info("allowed clients", names=sorted(self.names.values()))
        return not before.keys() <= self.names.keys()

    def _now(self) -> dict[str, tuple[int, int, int]]:
        """File name -> what changes when its content does. A folder that is not there allows nobody."""
        if not self.folder.exists():
            return {}
        found = {}
        with os.scandir(self.folder) as entries:
            for each in entries:
                # An editor's lock is a link to nowhere: it must not keep a removed key alive.
                with contextlib.suppress(FileNotFoundError):
                    if each.name.endswith(".key") and not each.name.startswith("."):
                        stat = each.stat()
                        found[each.name] = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        return found

    def _read(self, name: str) -> str | None:
        """None for a file that is no key, or half of one: what it said before still holds."""
        try:
            return read_public(self.folder / f"{name}.key")
        except SettingsError as error:
            log.warning("a key is skipped", reason=str(error))
            return None


class Gate:
    """Guards the sockets of one context. To be made before them, and closed after them.

    Raises SettingsError where mode is curve, an endpoint is tcp://, and the server has no key.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        security: Security,
        publish: Publish,
        health: Health,
        largest_frame_px: int = 0,
    ) -> None:
        self.denied = 0  # handshakes with a key that is not allowed
        self.epoch = 0  # goes up when everybody must be turned out
        self._health = health
        self._keys: tuple[str, str] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._allowed = AllowList(security.keys_dir / "allowed")
        self._refused: dict[str, float] = {}  # name -> until when
        self._growth = Growth(largest_frame_px)
        self._turned_out_s = self._looked_s = self._told_s = -LOG_S
        self._untold = 0
        if not _opens_tcp(publish):
            return
        if not needs_keys(security, publish):
            log.warning("security.mode is plain: anybody who reaches the ports may connect, in clear text")
        else:
            self._keys = server_keys(security.keys_dir)
            self._look()
        self._zap = _Doorkeeper(context, self, lambda: self._allowed.names)
        self._zap.start()
        self._thread = spawn("zap", self._run, health)

    def guard(self, listener: zmq.Socket[Any], endpoint: str) -> None:
        """To be called before bind."""
        if not _is_tcp(endpoint):
            return
        listener.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
        listener.setsockopt(ZAP_ENFORCE_DOMAIN, 1)
        if self._keys is not None:
            listener.setsockopt(zmq.CURVE_SERVER, 1)
            listener.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys[1])

    def turn_out(self, why: str, peer: str = "", at_once: bool = False) -> None:
        """End all connections, as libzmq can't end one; a client known by its key is kept out for a while.

        Others may come back at once, so it is not done again for a while, unless at_once: the rest must have
        time to listen.
        """
        now_s = time.monotonic()
        if self._is_refused(peer):
            return  # what it had sent before
        if peer in self._allowed.names.values():
            self._refused[peer] = now_s + REFUSED_S
        elif not at_once and now_s - self._turned_out_s < PAUSE_S:
            return
        self._turned_out_s = now_s
        self.epoch += 1
        log.warning("all clients must connect again", reason=why)

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.get_loop()  # it opens descriptors, which a flood may not leave at the first handshake
                while not self._stopping.is_set():
                    self._health.beat("zap")
                    if self._zap.zap_socket.poll(200):
                        runner.run(self._zap.handle_zap_message(self._zap.zap_socket.recv_multipart()))
                    self._look()
                    if self._growth.is_suspicious(is_ours=self._health.is_loading):
                        self.turn_out("memory grows, as by a message without an end", at_once=True)
                    self._tell()
        finally:
            self._zap.stop()

    def _look(self) -> None:
        now_s = time.monotonic()
        if self._keys is not None and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._health.excuse("zap")  # the folder's disk may hang
            if self._allowed.look():
                self.epoch += 1
                log.warning("all clients must connect again", reason="a key was removed")

    def callback(self, domain: str, key: bytes) -> bool:
        """The question of zmq.auth, at every handshake: may this client's key come in?"""
        name = self._allowed.names.get(key.decode("ascii"))
        if name is not None and not self._is_refused(name):
            return True
        self.denied += 1
        self._untold += 1
        return False

    def _is_refused(self, name: str) -> bool:
        return time.monotonic() < self._refused.get(name, 0.0)

    def _tell(self) -> None:
        if self._untold and time.monotonic() - self._told_s >= LOG_S:
            log.warning("clients were denied", times=self._untold, allowed=str(self._allowed.folder))
            self._told_s, self._untold = time.monotonic(), 0


class _Doorkeeper(Authenticator):
    """pyzmq's, with the clients' names for their keys."""

    def __init__(self, context: zmq.Context[Any], gate: Gate, names: Callable[[], dict[str, str]]) -> None:
        super().__init__(context)
        self._names = names
        self.configure_curve_callback(DOMAIN, gate)

    def curve_user_id(self, client_public_key: bytes) -> str:
        return self._names().get(z85.encode(client_public_key).decode("ascii"), "")


def peer_of(frame: zmq.Frame) -> str:
    """Who sent it: the client's name, else its address; of ipc:// its user, group and process."""
    for name in ("User-Id", "Peer-Address"):
        try:
            found = str(frame.get(name))
        except zmq.ZMQError:  # a peer that is gone already
            continue
        if found != "anonymous":
            return found
    return ""


def needs_keys(security: Security, publish: Publish) -> bool:
    return security.mode == "curve" and _opens_tcp(publish)


def _opens_tcp(publish: Publish) -> bool:
    return _is_tcp(publish.verdicts) or _is_tcp(publish.replay)


def _is_tcp(endpoint: str) -> bool:
    return endpoint.startswith("tcp://")
