"""Hostile peers and bad disks in their short form, and the proof that they are what they claim to be.

The long form: `python -m tests.faults.hostile --connections 10000`, and the storage and network faults of
`python -m tests.faults.run`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from tests.faults import attacks, disk, hostile, zmtp
from tests.faults.netns import no_namespaces
from tests.faults.registry import load_all
from tests.faults.trial import try_in_turn

# --- the attacks are real ---


@pytest.fixture
def publisher():
    """A daemon's kind of socket without any of the daemon's defences, and its address."""
    with zmq.Context() as context:
        listener = context.socket(zmq.XPUB)
        port = listener.bind_to_random_port("tcp://127.0.0.1")
        yield listener, ("127.0.0.1", port)
        context.destroy(linger=0)


def test_a_raw_peer_is_a_subscriber_to_libzmq(publisher):
    """Or the attacks that go on from there would end at the handshake."""
    listener, address = publisher
    tally = attacks.attack("never-reads", address, seed=1, count=3)
    assert (tally["connected"], tally["hung_up"]) == (3, 0)
    assert listener.recv() == b"\x01"


def test_floods_arrive_at_a_socket_without_defences(publisher):
    listener, address = publisher
    attacks.attack("subscription-flood", address, seed=1, count=2)
    assert sum(1 for _ in iter(lambda: listener.poll(0) and listener.recv(), 0)) >= 1000


def test_a_stranger_is_let_in_where_nobody_looks(publisher):
    """Else `let_in 0` would prove nothing."""
    listener, address = publisher
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.attacks", "strangers", *map(str, address), "--count", "20"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            listener.send(b"heartbeat")
            listener.poll(10)
        assert process.stdout is not None
        assert '"let_in"' in process.stdout.read()


@pytest.mark.parametrize("name", attacks.OUTSIDERS)
def test_an_attack_on_nobody_ends(name):
    """The daemon may be down: every attack is bounded, and counts instead of raising."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    tally = attacks.attack(name, address, seed=1, count=5)
    assert tally["connected"] == 0
    assert tally["cut"] > 0


def test_the_same_seed_is_the_same_attack():
    for make in (zmtp.garbage, zmtp.curve_hello):
        assert make(attacks.random.Random(3)) == make(attacks.random.Random(3))
        assert make(attacks.random.Random(3)) != make(attacks.random.Random(4))


WRITER = """
import os, struct, sys
def attempt(path):
    try:
        with open(os.path.abspath(path), "wb") as file:
            file.write(b"x")
    except OSError as error:
        return error.errno
    return 0
for error in (0, int(sys.argv[1]), 0):
    with open("faults/disk", "r+b") as control:
        control.write(struct.pack("3i", error, 0, 0))
    print(attempt("state/file"), attempt("elsewhere"))
"""


@pytest.mark.skipif(disk.no_bad_disk() is not None, reason=str(disk.no_bad_disk()))
def test_a_bad_disk_fails_below_its_folder_and_only_while_it_is_told_to(tmp_path: Path):
    for name in ("faults", "state"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(errno.EROFS)],
        cwd=tmp_path,
        env=os.environ | disk.PRELOADED,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.split() == ["0", "0", str(errno.EROFS), "0", "0", "0"]
    assert struct.unpack("3i", (tmp_path / disk.CONTROL).read_bytes()) == (0, 0, 0)


# --- the daemon under them ---


def test_an_honest_subscriber_misses_nothing_under_hundreds_of_hostile_connections():
    outcome = hostile.attack(300, seed=7, curve=True, calm_s=1.0)
    assert outcome.problems == []
    assert outcome.connections >= 300
    assert outcome.historical == 0
    assert outcome.live > 100


SEED = 27  # of short faults
TOURS = {
    "a bad disk and a start without memory": [
        "disk_full",
        "image_folder_unwritable",
        "shared_memory_exhausted",
    ],
    "a pulled cable": ["cable_pulled"],
}


@pytest.mark.parametrize("tour", TOURS)
def test_no_part_is_lost_or_falsely_passed_under(tour: str) -> None:
    if tour == "a pulled cable" and no_namespaces():
        pytest.skip(str(no_namespaces()))
    row = try_in_turn(TOURS[tour], seed=SEED)
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.violations == []
    assert row.tried == len(TOURS[tour])


def test_every_promised_kind_is_registered():
    wanted = {
        "disk_full",
        "disk_read_only",
        "disk_slow",
        "journal_overwritten",
        "journal_locked",
        "image_quota",
    }
    wanted |= {"shared_memory_exhausted", "subscriber_stalled", "subscriber_slow", "subscriber_killed"}
    wanted |= {"connects_and_disconnects", "garbage_bytes", "half_open_connections", "oversize_messages"}
    wanted |= {"wrong_curve_key", "port_scan", "absurd_replay_requests"}
    assert wanted <= load_all().keys()
