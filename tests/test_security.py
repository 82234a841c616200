"""Who gets in, who does not, and what a hostile peer can do to an honest one: nothing that it would miss."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress

import pytest
import zmq
from helpers_daemon import Box, events_until, line_source, verdicts
from helpers_wire import Wire, seq_is, wait_until
from helpers_zmtp import address_of, frame, greeted, greeting, is_closed

from inspectord import zap
from inspectord.cli import main
from inspectord.client import Client, Heartbeat, Inspected
from inspectord.errors import SettingsError, StateError
from inspectord.growth import resident_bytes
from inspectord.health import Health
from inspectord.keys import Keys, keygen, read_secret, server_keys
from inspectord.publish import Heart, Publisher
from inspectord.rates import MOST_PEERS, Rates
from inspectord.settings import Publish, Security
from inspectord.sockets import turn_out
from inspectord.zap import AllowList, Gate

WITH_HELPERS = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}


@pytest.fixture(autouse=True)
def keys_are_looked_at_often(monkeypatch):
    monkeypatch.setattr(zap, "LOOK_S", 0.1)


@pytest.fixture
def wire(tmp_path):
    with beating(Wire(tmp_path)) as wire:
        yield wire


@pytest.fixture
def plain(tmp_path):
    with beating(Wire(tmp_path, mode="plain")) as wire:
        yield wire


@contextmanager
def beating(wire):
    """With heartbeats, as a daemon has them."""
    heart = Heart(wire.publisher, 50, wire.state, wire.health)
    yield wire
    heart.close()
    wire.close()
    assert wire.health.failure is None


@contextmanager
def honest(wire, rate_hz=200):
    """A line that runs, and a subscriber with its own key which must hear all of it."""
    ended, all_sent, heard = threading.Event(), threading.Event(), []

    def line():
        while not ended.wait(1 / rate_hz):
            wire.send(1)

    def listen():
        while not (all_sent.is_set() and heard and heard[-1] == wire.seq):
            event = client.next(0.2)
            if event is not None and not isinstance(event, Heartbeat):
                heard.append(event.message.seq if isinstance(event, Inspected) else event)

    client = Client(wire.settings.verdicts, wire.settings.replay, keys=wire.keys, heartbeat_timeout_ms=3000)
    with client:
        threads = [threading.Thread(target=each, daemon=True) for each in (line, listen)]
        [thread.start() for thread in threads]
        try:
            time.sleep(0.2)
            yield
            time.sleep(0.2)
        finally:
            ended.set()
            threads[0].join(20)  # it may be about to send once more
            all_sent.set()
            threads[1].join(20)
    assert heard == list(range(heard[0], wire.seq + 1))
    assert len(heard) > 20


def new_client(wire, name):
    keygen(wire.keys_dir, name)
    wait_until(lambda: name in wire.gate._allowed.names.values())
    return Keys.load(wire.keys_dir, name)


def stranger(wire):
    """A key pair of its own, and the daemon's public key, which is no secret."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return Keys(wire.keys.server, public, secret)


def is_let_in(wire, keys, timeout_ms=700):
    asking = wire.context.socket(zmq.DEALER)
    asking.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        keys.apply(asking)
    asking.connect(wire.settings.replay)
    asking.send_multipart([b"", b'{"what": "status"}'])
    answered = bool(asking.poll(timeout_ms))
    asking.close()
    return answered


# Keys


def test_keygen_makes_keys_that_only_their_owner_can_read(tmp_path, capsys):
    assert main(["keygen", "--keys", str(tmp_path)]) == 0
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.key*")} == {
        "server.key",
        "server.key_secret",
        "local.key_secret",
        "allowed/local.key",
    }
    for secret in tmp_path.glob("*.key_secret"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert Keys.load(tmp_path).server == server_keys(tmp_path)[0]


def test_keygen_never_overwrites_and_says_so(tmp_path, capsys):
    main(["keygen", "--keys", str(tmp_path)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.key*")}
    capsys.readouterr()
    assert main(["keygen", "--keys", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["kept"] * 4
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.key*")} == before


def test_keygen_for_a_gateway_names_the_two_files_to_carry(tmp_path, capsys):
    assert main(["keygen", "--keys", str(tmp_path), "--client", "plc"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"{tmp_path}/plc.key_secret" in last
    assert f"{tmp_path}/server.key" in last
    (tmp_path / "plc.key_secret").unlink()  # carried away
    assert main(["keygen", "--keys", str(tmp_path), "--client", "plc"]) == 78
    assert main(["keygen", "--keys", str(tmp_path), "--client", "../plc"]) == 78


def test_a_lost_public_half_is_made_again_from_the_secret_one(tmp_path):
    keygen(tmp_path, "local")
    before = Keys.load(tmp_path)
    (tmp_path / "server.key").unlink()
    keygen(tmp_path, "local")
    assert Keys.load(tmp_path) == before


def test_a_secret_that_others_can_read_is_refused_with_the_command(tmp_path, monkeypatch):
    keygen(tmp_path, "local")
    (tmp_path / "server.key_secret").chmod(0o640)
    with pytest.raises(SettingsError, match=r"chmod 600 .*server\.key_secret"):
        server_keys(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert server_keys(tmp_path / "elsewhere") == read_secret(tmp_path / "server.key_secret", True)


@pytest.mark.parametrize("text", [b"", b"\x00" * 300, b'public-key = "short"', b'public-key = "' + b"#" * 40])
def test_what_is_no_key_is_one_clear_error(tmp_path, text):
    keygen(tmp_path, "local")
    (tmp_path / "server.key").write_bytes(text)
    with pytest.raises(SettingsError, match=r"server\.key is no key"):
        Keys.load(tmp_path)


def test_a_run_without_keys_names_the_command_that_makes_them(tmp_path):
    box = Box(tmp_path)
    box.add_camera(line_source())
    box.config["security"]["keys_dir"] = str(tmp_path / "none")
    for command in ("run", "check"):
        done = box.run(command, "--config", str(box.config_path))
        assert done.returncode == 78
        assert f"inspectord keygen --keys {tmp_path / 'none'}" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# Who gets in


def test_only_allowed_keys_get_in_and_the_others_are_counted(wire):
    assert is_let_in(wire, wire.keys)
    assert not is_let_in(wire, stranger(wire))
    assert wire.gate.denied > 0


def test_a_client_without_a_key_or_for_another_server_gets_nothing(wire):
    other = stranger(wire)
    assert not is_let_in(wire, None)
    assert not is_let_in(wire, Keys(other.public, wire.keys.public, wire.keys.secret))


def test_a_client_with_a_key_gets_nothing_from_a_plain_daemon(plain, tmp_path):
    assert is_let_in(plain, None)
    assert not is_let_in(plain, Keys.load(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("keys", "says"), [(None, "without a key"), ("stranger", "it does not allow this key")]
)
def test_who_is_not_let_in_is_told_why_that_may_be(wire, keys, says):
    keys = stranger(wire) if keys else None
    with pytest.raises(StateError, match=says):
        Client(wire.settings.verdicts, wire.settings.replay, keys=keys, connect_s=0.3).start()


@pytest.mark.parametrize("mode", ["curve", "plain"])
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x00\x00"])
def test_peers_of_old_protocols_hear_nothing(tmp_path, mode, version):
    """ZMTP 1 and 2 know no security: libzmq admits them, past every key, unless a doorkeeper is set."""
    with beating(Wire(tmp_path, mode=mode)) as wire:
        peer = socket.create_connection(address_of(wire.settings.verdicts))
        peer.sendall(b"\xff" + b"\0" * 8 + b"\x7f" + version[:1] + b"\x02" + frame(b"") + frame(b"\x01"))
        assert is_closed(peer)


def test_nobody_gets_in_while_the_doorkeeper_is_away(wire):
    wire.gate.close()
    assert not is_let_in(wire, wire.keys)
    assert not is_let_in(wire, stranger(wire))


def test_a_new_key_is_let_in_without_a_restart(wire):
    assert is_let_in(wire, new_client(wire, "plc"))


def test_a_removed_key_is_cut_off_and_an_honest_subscriber_misses_nothing(wire):
    keys = new_client(wire, "plc")
    with honest(wire):
        listening = wire.socket(zmq.SUB, wire.settings.verdicts, keys)
        listening.setsockopt(zmq.SUBSCRIBE, b"verdict/")
        assert listening.recv_multipart()
        (wire.keys_dir / "allowed" / "plc.key").unlink()
        wait_until(lambda: wire.gate.epoch == 1)
        time.sleep(0.3)
        while listening.poll(0):
            listening.recv_multipart()
        assert not listening.poll(500)
        assert not is_let_in(wire, keys)


def test_a_request_that_is_lost_when_connections_are_ended_is_asked_again(wire, monkeypatch):
    answer, asked = wire.replay._replayer.answer, []

    def cut_off_once(request):
        asked.append(request)
        if len(asked) == 1:
            turn_out(wire.replay._socket, "publish.replay", nullcontext())
            time.sleep(0.1)
        return answer(request)

    with wire.client() as client:
        monkeypatch.setattr(wire.replay._replayer, "answer", cut_off_once)
        wire.send(2, lost=True)
        wire.send(1)
        assert [message.seq for message in verdicts(events_until(client, seq_is(3)))] == [1, 2, 3]
    assert len(asked) == 2


def test_half_a_key_file_empties_no_list(wire):
    keys, allowed = new_client(wire, "plc"), wire.keys_dir / "allowed"
    (allowed / "new.key").write_bytes(b'public-key = "half')
    text = (allowed / "plc.key").read_bytes()
    (allowed / "plc.key").write_bytes(text[: len(text) // 2])
    os.mkfifo(allowed / "pipe.key")
    time.sleep(0.6)
    assert is_let_in(wire, wire.keys)
    assert is_let_in(wire, keys)
    assert wire.gate.epoch == 0


def test_an_editors_lock_file_keeps_no_removed_key_alive(tmp_path):
    """Such a lock is a link to nowhere, which raises at stat(); the whole folder then looked unchanged."""
    keygen(tmp_path, "plc")
    allowed = AllowList(tmp_path / "allowed")
    allowed.look()
    assert list(allowed.names.values()) == ["plc"]
    (tmp_path / "allowed" / ".#plc.key").symlink_to("someone@somewhere.1234")
    (tmp_path / "allowed" / "gone.key").symlink_to("nowhere")
    (tmp_path / "allowed" / "plc.key").unlink()
    assert allowed.look()
    assert not allowed.names


# ipc


def test_an_ipc_socket_is_for_the_group_and_replaces_one_that_was_left(tmp_path):
    path = tmp_path / "verdicts"
    settings = Publish(verdicts=f"ipc://{path}", replay=f"ipc://{tmp_path}/replay")
    killed = (
        "import os, sys, zmq; c = zmq.Context(); s = c.socket(zmq.XPUB); s.bind(sys.argv[1]); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, settings.verdicts], check=False)
    assert path.is_socket()
    context, health = zmq.Context(), Health()
    gate = Gate(context, Security(), settings, health)  # needs no keys
    publisher = Publisher(context, settings, ["cam1"], gate)
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    publisher.close()
    context.destroy(linger=0)


def test_another_process_can_not_take_an_ipc_path(tmp_path):
    wire = Wire(tmp_path, settings=Publish(verdicts=f"ipc://{tmp_path}/v", replay=f"ipc://{tmp_path}/r"))
    code = (
        "import sys; from contextlib import ExitStack; import zmq; from inspectord.health import Health; "
        "from inspectord.settings import Publish, Security; from inspectord.sockets import bound; "
        "from inspectord.zap import Gate; context, stack = zmq.Context(), ExitStack(); "
        "gate = Gate(context, Security(), Publish(verdicts=sys.argv[1], replay=sys.argv[1]), Health()); "
        "bound(context, zmq.XPUB, sys.argv[1], 'publish.verdicts', gate, stack)"
    )
    second = subprocess.run(
        [sys.executable, "-c", code, wire.settings.verdicts], capture_output=True, text=True, timeout=30
    )
    assert "is in use by another inspectord; stop it or change publish.verdicts" in second.stderr
    with wire.client(keys=None) as client:
        wire.send(1)
        assert isinstance(client.next(2), Inspected)
    wire.close()


def test_a_file_in_the_place_of_an_ipc_socket_is_not_deleted(tmp_path):
    path = tmp_path / "precious"
    path.write_text("x")
    settings = Publish(verdicts=f"ipc://{path}", replay=f"ipc://{tmp_path}/replay")
    context = zmq.Context()
    with pytest.raises(StateError, match="is there and no socket"):
        Publisher(context, settings, ["cam1"], Gate(context, Security(), settings, Health()))
    assert path.read_text() == "x"
    context.destroy(linger=0)


# Hostile peers


def test_an_honest_subscriber_misses_nothing_among_2000_rapid_connections(wire):
    addresses = [address_of(wire.settings.verdicts), address_of(wire.settings.replay)]
    before = len(os.listdir("/proc/self/fd"))
    with honest(wire):
        for number in range(2000):
            with socket.create_connection(addresses[number % 2], timeout=5) as peer:
                if number % 3 == 0:
                    peer.sendall(os.urandom(100))
    wait_until(lambda: len(os.listdir("/proc/self/fd")) < before + 20)


def test_an_honest_subscriber_misses_nothing_among_strangers_with_wrong_keys(wire):
    with honest(wire):
        sockets = [wire.socket(zmq.SUB, wire.settings.verdicts, stranger(wire)) for _ in range(50)]
        time.sleep(0.5)
        [each.close(0) for each in sockets]
    assert wire.gate.denied >= 50


def test_connections_that_say_nothing_are_closed(wire):
    endpoints = (wire.settings.verdicts, wire.settings.replay) * 2
    peers = [socket.create_connection(address_of(endpoint)) for endpoint in endpoints]
    for half in peers[2:]:
        half.sendall(greeting(b"CURVE"))
    assert all(is_closed(peer) for peer in peers)


@pytest.mark.parametrize("kind", [b"SUB", b"DEALER"])
def test_a_frame_that_is_too_long_ends_its_connection(plain, kind):
    endpoint = plain.settings.verdicts if kind == b"SUB" else plain.settings.replay
    with honest(plain):
        peer = greeted(endpoint, kind)
        peer.sendall(b"\x02" + (2**62).to_bytes(8, "big"))
        assert is_closed(peer)
        peer = greeted(endpoint, kind)
        peer.sendall(frame(b"\x01" + b"x" * 5000))
        assert is_closed(peer)


def test_a_flood_of_requests_by_one_client_leaves_the_answers_to_another(wire):
    keys, answers = new_client(wire, "greedy"), []
    flood = wire.socket(zmq.DEALER, wire.settings.replay, keys)
    for _ in range(900):
        flood.send_multipart([b"", b'{"what": "snapshot"}'], zmq.NOBLOCK)
    with wire.client() as client:
        for _ in range(20):
            began_s = time.monotonic()
            assert client._requests.ask({"what": "status"}, 2)["state"]["state"] == "ready"
            answers.append(time.monotonic() - began_s)
    assert sorted(answers)[10] < 0.2
    replies = [json.loads(flood.recv_multipart()[-1]) for _ in range(900)]
    assert 150 <= sum("error" not in reply for reply in replies) <= 400
    assert all(reply["retry_after_s"] > 0 for reply in replies if "error" in reply)


def test_a_client_that_goes_on_flooding_with_requests_is_kept_out(wire):
    keys = new_client(wire, "greedy")
    flood = wire.socket(zmq.DEALER, wire.settings.replay, keys)
    with honest(wire):
        while "greedy" not in wire.gate._refused:  # where memory grows, all are turned out and none kept out
            with suppress(zmq.Again):  # kept out, it would wait here until it is let in again
                flood.send_multipart([b"", b'{"what": "snapshot"}'], zmq.NOBLOCK)
            while flood.poll(0):
                flood.recv_multipart()
    assert not is_let_in(wire, keys)
    assert is_let_in(wire, wire.keys)


STALLED = """
import sys, time
from inspectord.client import Client
client = Client(sys.argv[1], sys.argv[2], receive_depth=10)
client.start()
print("started", flush=True)
time.sleep(3.5)
"""


def test_a_stalled_client_outlives_a_daemon_that_is_gone(tmp_path):
    """With ZMTP's heartbeats on, libzmq aborts the client's process here."""
    wire = Wire(tmp_path, mode="plain")
    endpoints = wire.settings.verdicts, wire.settings.replay
    with subprocess.Popen([sys.executable, "-c", STALLED, *endpoints], stdout=subprocess.PIPE) as stalled:
        stalled.stdout.readline()
        wait_until(lambda: wire.publisher.listen() or wire.publisher.subscriptions == 2)
        for _ in range(10):
            wire.send(1000)
            time.sleep(0.02)
        wire.close()
        assert stalled.wait(10) == 0


def test_a_client_over_its_rate_waits_and_gets_its_answer(wire):
    with wire.client() as client:
        for _ in range(220):
            assert "state" in client._requests.ask({"what": "status"}, 2)


SUBSCRIBING = {
    "curve": """
import os, sys, time, zmq
from inspectord.keys import Keys
socket = zmq.Context().socket(zmq.SUB)
Keys.load(sys.argv[2], "greedy").apply(socket)
for _ in range(100_000):  # all are sent at once when it is connected
    socket.setsockopt(zmq.SUBSCRIBE, os.urandom(100))
print("ready", flush=True)
socket.connect(sys.argv[1])
time.sleep(60)
""",
    "plain": """
import os, sys, time
from helpers_zmtp import frame, greeted
topics = [b"".join(frame(b"\\x01" + os.urandom(20)) for _ in range(1000)) for _ in range(100)]
print("ready", flush=True)
while True:
    try:
        peer = greeted(sys.argv[1], b"SUB")
        while True:
            for each in topics:
                peer.sendall(each)
    except (OSError, AssertionError):  # turned out
        time.sleep(0.02)
""",
}


@pytest.mark.parametrize("mode", ["curve", "plain"])
def test_a_flood_of_subscriptions_holds_up_no_verdict(tmp_path, mode):
    with beating(Wire(tmp_path, mode=mode)) as wire:
        flood_with_subscriptions(wire, mode)


def flood_with_subscriptions(wire, mode):
    keys, slowest_s = new_client(wire, "greedy") if mode == "curve" else None, 0.0
    command = [sys.executable, "-c", SUBSCRIBING[mode], wire.settings.verdicts, str(wire.keys_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=WITH_HELPERS) as flood, honest(wire):
        flood.stdout.readline()
        before, end_s = resident_bytes(), time.monotonic() + 1.5
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            wire.publisher.send_heartbeat(wire.state())
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            time.sleep(0.002)
        flood.kill()
        assert wire.gate.epoch >= 1
        if keys is not None:  # names tell one from another: it is kept out
            assert wire.gate.epoch == 1
            assert not is_let_in(wire, keys)
    assert slowest_s < 0.3
    assert wire.publisher.subscriptions < 20_000
    assert resident_bytes() - before < 100 << 20


def test_a_message_without_an_end_does_not_fill_the_memory(plain):
    """libzmq gathers all parts of a message before it gives out the first, and counts them as one."""
    before, peak = resident_bytes(), 0
    with honest(plain):
        peer, parts = greeted(plain.settings.replay, b"DEALER"), frame(b"x" * 200, more=True) * 500
        end_s = time.monotonic() + 20
        try:
            while time.monotonic() < end_s:
                peer.sendall(parts)
                peak = max(peak, resident_bytes())
        except OSError:  # turned out
            pass
        assert time.monotonic() < end_s
    assert peak - before < 1 << 30


# Rates


def test_rates_allow_a_burst_then_so_many_a_second_for_each_peer():
    now_s = 0.0
    rates = Rates(10, 20, lambda: now_s)
    assert [rates.take("a") for _ in range(25)] == [True] * 20 + [False] * 5
    assert rates.take("b")
    now_s = 0.35
    assert [rates.take("a") for _ in range(4)] == [True] * 3 + [False]


def test_the_table_of_rates_is_bounded():
    rates = Rates(1, 1)
    for number in range(2 * MOST_PEERS):
        rates.take(str(number))
    assert len(rates) == MOST_PEERS
