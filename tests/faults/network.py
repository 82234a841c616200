"""Faults of the network: peers that are slow, dead, lost, hostile or broken. The line never notices.

Attacks come from processes of their own, on loopback or in a network namespace. In all of them verdicts come
in time, the daemon keeps no file descriptor of a peer that is gone, and an honest subscriber misses nothing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from inspectord.keys import Keys, keygen
from tests.faults.line import ROOT, Line, Setup
from tests.faults.netns import Namespace, no_namespaces
from tests.faults.oracle import Promises
from tests.faults.registry import fault

OPEN = Setup()  # whoever comes is let in
GUARDED = Setup(curve=True)
FAR = Setup(curve=True, listens_on="0.0.0.0")
# A peer that may come in and floods the daemon is turned out, without keys all others with it for a moment.
TURNED_OUT = Promises(subscriber_complete=False)
ATTACK_S = 60.0
MOST_GROWTH = 64 << 20
BACK_S = (
    10.0  # a silent peer is closed after the handshake's time limit of 2 s, a dead one after heartbeats' 6 s
)


def attacked(line: Line, attack: str, port: str, seed: int, count: int, inside: bool = False) -> Counter[str]:
    """One attack from a process of its own, while the line inspects. inside: with keys that are allowed."""
    host, _, number = line.endpoints[port].removeprefix("tcp://").rpartition(":")
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.faults.attacks", attack]
    command += [host, number, "--count", str(count), "--seed", str(seed)]
    if line.keys is not None and (inside or attack == "strangers"):
        keys = _insider(line) if inside else line.keys
        command.append(f"--keys={keys.server},{keys.public},{keys.secret}")
    # In a session of its own, without the line's orders to fail.
    environment = {name: value for name, value in os.environ.items() if name != "LINE_FAULTS"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line.flows(10)
            text, _ = process.communicate(timeout=ATTACK_S)
        finally:
            process.kill()
    assert process.returncode == 0, f"the attack {attack} failed"
    table: dict[str, Any] = json.loads(text)
    return Counter({name: value for name, value in table.items() if isinstance(value, int)})


def _descriptors(line: Line) -> int | None:
    """How many are open; None in a pair, where the other fault may close files or replace the daemon."""
    return psutil.Process(line.pid).num_fds() if line.alone else None


def _come_back(line: Line, before: int | None) -> None:
    """Wait until the connections of an attack are closed again."""
    if before is None:
        return
    process = psutil.Process(line.pid)
    line.recorder.wait(
        lambda: not line.alive() or process.num_fds() <= before + 2, 20, "descriptors come back"
    )
    assert line.alive(), "the daemon ended"


def _insider(line: Line) -> Keys:
    """A new client that is let in, as one that was turned out is not for a while."""
    name = f"insider{time.monotonic_ns()}"
    for _ in keygen(line.keys_dir, name):
        pass
    time.sleep(1.5)  # the folder is looked at every second
    return Keys.load(line.keys_dir, name)


def _struck(
    line: Line, rng: random.Random, attack: str, port: str, count: int, inside: bool = False
) -> tuple[float, Counter[str]]:
    """Seconds until inspected parts come and the attack's connections are closed again."""
    before = _descriptors(line)
    tally = attacked(line, attack, port, rng.randrange(1 << 30), count, inside)
    began_s = time.monotonic()
    line.flows(10)
    _come_back(line, before)
    return time.monotonic() - began_s, tally


def _either(rng: random.Random) -> str:
    return rng.choice(["verdicts", "replay"])


@fault(GUARDED, recovers_s=BACK_S)
def subscriber_stalled(line: Line, rng: random.Random) -> float:
    """Subscribers that never read, and leave without a word."""
    return _struck(line, rng, "stalled-subscribers", "verdicts", 20, inside=True)[0]


@fault(GUARDED, recovers_s=BACK_S)
def subscriber_slow(line: Line, rng: random.Random) -> float:
    """Subscribers that read a message now and then."""
    return _struck(line, rng, "slow-readers", "verdicts", 20, inside=True)[0]


@fault(GUARDED, recovers_s=BACK_S)
def subscriber_killed(line: Line, rng: random.Random) -> float:
    """Subscribers that are killed (-9) while they listen."""
    took_s, tally = _struck(line, rng, "killed-subscribers", "verdicts", 3, inside=True)
    assert tally["heard"] == 3, tally
    return took_s


@fault(recovers_s=BACK_S)
def connects_and_disconnects(line: Line, rng: random.Random) -> float:
    """1,000 connections that are closed or reset at once."""
    return _struck(line, rng, "connects", _either(rng), 1000)[0]


@fault(recovers_s=BACK_S)
def port_scan(line: Line, rng: random.Random) -> float:
    """A port scan: 1,000 connections to this and the ports around it, reset at once."""
    return _struck(line, rng, "port-scan", _either(rng), 1000)[0]


@fault(GUARDED, recovers_s=BACK_S)
def garbage_bytes(line: Line, rng: random.Random) -> float:
    """200 peers that speak noise, HTTP, TLS, SSH, old ZMTP, or ZMTP and then noise."""
    return _struck(line, rng, "garbage", _either(rng), 200)[0]


@fault(recovers_s=BACK_S, promises=TURNED_OUT)
def garbage_bytes_unguarded(line: Line, rng: random.Random) -> float:
    """The same where security.mode is plain, and the noise reaches the sockets themselves."""
    return _struck(line, rng, "garbage", _either(rng), 200)[0]


@fault(GUARDED, recovers_s=BACK_S)
def half_open_connections(line: Line, rng: random.Random) -> float:
    """300 peers that connect, say nothing or half a greeting, and stay; some a byte at a time."""
    return _struck(line, rng, rng.choice(["half-open", "slowloris"]), _either(rng), 300)[0]


@fault(GUARDED, recovers_s=BACK_S)
def oversize_messages(line: Line, rng: random.Random) -> float:
    """Frames and handshake commands that claim up to 2^63 bytes."""
    return _struck(line, rng, "oversize", _either(rng), 200)[0]


@fault(recovers_s=BACK_S)
def oversize_messages_unguarded(line: Line, rng: random.Random) -> float:
    """The same where security.mode is plain; and topics up to 1 MB."""
    return _struck(line, rng, rng.choice(["oversize", "huge-subscription"]), "verdicts", 100)[0]


@fault(promises=TURNED_OUT, recovers_s=20.0, strikes_a_run=3)
def endless_message(line: Line, rng: random.Random) -> float:
    """One message of 1.2 GB in small parts, where security.mode is plain: memory stays bounded."""
    process = psutil.Process(line.pid)
    before = process.memory_info().rss
    took_s, _ = _struck(line, rng, "endless-message", "replay", 20_000)
    if not line.alone:  # the other fault may have replaced the daemon
        return took_s
    line.recorder.wait(lambda: process.memory_info().rss < before + MOST_GROWTH, 20, "memory comes back")
    return took_s


@fault(GUARDED, recovers_s=BACK_S)
def wrong_curve_key(line: Line, rng: random.Random) -> float:
    """50 clients without a key, with one that is not allowed, with another server's, or with a password."""
    took_s, tally = _struck(line, rng, "strangers", "verdicts", 50)
    assert tally["let_in"] == 0, tally
    return took_s


@fault(GUARDED, recovers_s=BACK_S)
def broken_handshakes(line: Line, rng: random.Random) -> float:
    """CURVE handshakes that are cut off, forged or of another mechanism."""
    attack = rng.choice(["truncated-curve", "curve-hello-flood", "wrong-mechanism"])
    return _struck(line, rng, attack, _either(rng), 200)[0]


@fault(GUARDED, recovers_s=BACK_S)
def absurd_replay_requests(line: Line, rng: random.Random) -> float:
    """300 requests of every wrong kind from an allowed client: each is answered."""
    took_s, tally = _struck(line, rng, "odd-requests", "replay", 300, inside=True)
    assert tally["answered"] > 0, tally
    return took_s


@fault(GUARDED, promises=TURNED_OUT, recovers_s=BACK_S)
def replies_unread(line: Line, rng: random.Random) -> float:
    """An allowed client that asks for all there is, again and again, and reads no reply."""
    return _struck(line, rng, "unread-replies", "replay", 2000, inside=True)[0]


@fault(GUARDED, promises=TURNED_OUT, recovers_s=BACK_S, strikes_a_run=5)
def subscription_flood(line: Line, rng: random.Random) -> float:
    """An allowed client that subscribes to 100,000 topics: it is turned out."""
    return _struck(line, rng, "subscriptions", "verdicts", 100_000, inside=True)[0]


@fault(FAR, recovers_s=20.0, strikes_a_run=5, needs=no_namespaces)
def cable_pulled(line: Line, rng: random.Random) -> float:
    """A gateway's cable is out for 2 to 9 s: it says so, and then has every verdict once, in order."""
    with Namespace() as there, _Gateway(line, there) as gateway:
        gateway.wait(lambda: gateway.live_since(0), 15)
        there.pull()
        gateway.wait(lambda: gateway.count("Silence") > 0, 5)
        time.sleep(rng.uniform(1.0, 8.0))
        line.flows(10)
        there.plug()
        since_ns = time.monotonic_ns()
        took_s = gateway.wait(lambda: gateway.live_since(since_ns), 30)
        gateway.check()
        assert gateway.count("Back") == 1, "the end of the silence was not told"
    return took_s


@fault(FAR, recovers_s=BACK_S, strikes_a_run=5, needs=no_namespaces)
def attacks_from_another_host(line: Line, rng: random.Random) -> float:
    """Four kinds of attack at once from another network namespace, whose cable is pulled in the middle."""
    before = _descriptors(line)
    with Namespace() as there:
        kinds = rng.sample(
            ["garbage", "half-open", "truncated-curve", "port-scan", "slowloris", "connects"], 4
        )
        commands = [
            [*there.words, sys.executable, "-m", "tests.faults.attacks", kind, there.here, _port(line, rng)]
            for kind in kinds
        ]
        peers = [subprocess.Popen(each, cwd=ROOT, stdout=subprocess.DEVNULL) for each in commands]
        try:
            time.sleep(rng.uniform(0.5, 2.0))
            there.pull()
            line.flows(10)
        finally:
            for peer in peers:
                peer.kill()
                peer.wait()
    began_s = time.monotonic()
    _come_back(line, before)
    line.flows(10)
    return time.monotonic() - began_s


def _port(line: Line, rng: random.Random) -> str:
    return line.endpoints[_either(rng)].rpartition(":")[2]


class _Gateway:
    """tests.faults.far in another namespace; its events are read from a file."""

    def __init__(self, line: Line, there: Namespace) -> None:
        self._path = Path(line.folder / f"gateway-{time.monotonic_ns()}.jsonl")
        endpoints = [each.replace("127.0.0.1", there.here) for each in line.endpoints.values()]
        keys = [line.keys.server, line.keys.public, line.keys.secret] if line.keys is not None else []
        self._command = [*there.words, sys.executable, "-m", "tests.faults.far", *endpoints, *keys]

    def __enter__(self) -> _Gateway:
        with self._path.open("wb") as out:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=out)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def events(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in self._path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def count(self, name: str) -> int:
        return sum(event["event"] == name for event in self.events())

    def live_since(self, t_ns: int) -> bool:
        """Five verdicts that are not historical."""
        live = [event for event in self.events() if event.get("historical") is False and event["t_ns"] > t_ns]
        return len(live) >= 5

    def wait(self, done: Any, timeout_s: float) -> float:
        began_s = time.monotonic()
        while not done():
            assert time.monotonic() - began_s < timeout_s, (
                f"gateway: not within {timeout_s} s; {self.events()[-3:]}"
            )
            assert self._process.poll() is None, "the gateway ended"
            time.sleep(0.05)
        return time.monotonic() - began_s

    def check(self) -> None:
        """Every verdict once and in order, none missing."""
        given = [event for event in self.events() if event["event"] == "Inspected"]
        seqs = [event["seq"] for event in given if event["camera"] == "cam1"]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))), (
            "the gateway missed verdicts, or had some twice"
        )
        assert self.count("Gap") == 0, "the gateway could not fetch what it had missed"
