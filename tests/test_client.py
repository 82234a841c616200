"""The client: nothing missing, nothing twice, silence and restarts made loud; all against a real daemon."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest
import zmq
from helpers_daemon import Box, events_until, line_source, make_message, verdicts
from helpers_wire import Wire, seq_is, wait_until

from inspectord.ask import Requests
from inspectord.client import Back, Gap, Heartbeat, Inspected, Restart, Silence
from inspectord.messages import encode


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.kill()


@pytest.fixture
def wire(tmp_path):
    wire = Wire(tmp_path)
    yield wire
    wire.close()


def test_verdicts_before_the_snapshot_are_not_given_out(wire):
    wire.send(5)
    with wire.client() as client:
        wire.send(2)
        assert [message.seq for message in verdicts(events_until(client, seq_is(7)))] == [6, 7]


def test_from_the_start_what_was_decided_before_comes_as_historical(wire):
    wire.send(5)
    with wire.client(from_start=True) as client:
        wire.send(2)
        found = verdicts(events_until(client, seq_is(7)))
    assert [message.seq for message in found] == [1, 2, 3, 4, 5, 6, 7]
    assert all(message.historical for message in found[:5])


def test_a_gap_is_filled_in_order_and_marked_historical(wire):
    with wire.client() as client:
        wire.send(2)
        wire.send(3, lost=True)
        wire.send(1)
        found = verdicts(events_until(client, seq_is(6)))
    assert [(message.seq, message.historical) for message in found] == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (5, True),
        (6, False),
    ]


def test_msgpack_is_taken_and_replayed_as_json_is(tmp_path):
    wire = Wire(tmp_path, encoding="msgpack")
    with wire.client() as client:
        wire.send(2)
        wire.publisher.histories["cam1"].put(3, encode(make_message(3), "msgpack"))
        wire.seq = 3
        wire.send(1)
        found = verdicts(events_until(client, seq_is(4)))
    assert found[:2] == [make_message(1), make_message(2)]
    assert [message.historical for message in found] == [False, False, True, False]
    wire.close()


def test_lost_last_verdicts_are_noticed_by_the_heartbeat(wire):
    with wire.client() as client:
        wire.send(1)
        wire.send(2, lost=True)
        wire.heartbeat()
        found = verdicts(events_until(client, seq_is(3)))
    assert [message.seq for message in found] == [1, 2, 3]


def test_what_nobody_has_any_more_is_a_gap(tmp_path):
    wire = Wire(tmp_path, depth=10)
    with wire.client() as client:
        for seq in range(1, 31):
            wire.publisher.histories["cam1"].put(seq, encode(make_message(seq)))
        wire.seq = 30
        wire.send(1)
        events = events_until(client, seq_is(31))
    assert events[0] == Gap("cam1", wire.boot_id, 1, 21)
    assert [message.seq for message in verdicts(events)] == list(range(22, 32))
    wire.close()


def test_a_stalled_subscriber_misses_nothing(wire):
    """ZeroMQ drops silently: most of these come by replay."""
    with wire.client(receive_depth=10) as client:
        for _ in range(20):
            wire.send(1000)
            while wire.journal.backlog > 5000:
                time.sleep(0.01)
        time.sleep(0.3)
        wire.heartbeat()
        wire.journal.close()
        end_s = time.monotonic() + 20
        found = []
        while (not found or found[-1].seq < 20_000) and time.monotonic() < end_s:
            event = client.next(0.1)
            if isinstance(event, Inspected):
                found.append(event.message)
            assert not isinstance(event, Gap)
            wire.heartbeat()
    assert [message.seq for message in found] == list(range(1, 20_001))
    assert sum(message.historical for message in found) > 1000


def test_silence_and_its_end_are_events(wire):
    with wire.client(heartbeat_timeout_ms=150) as client:
        wire.heartbeat()
        silence = events_until(client, lambda e: isinstance(e, Silence))[-1]
        assert 150 <= silence.silent_ms < 400
        wire.heartbeat()
        events_until(client, lambda e: isinstance(e, Back))


def test_garbage_on_the_wire_is_left_out(wire):
    with wire.client() as client:
        half = [b'{"schema":"inspectord/heartbeat/1"}', b'{"schema":"inspectord/verdict/1"}']
        for payload in (b"", b"{", *half):
            wire.publisher._send([b"verdict/s1/cam1/PASS", payload])
        wire.send(1)
        assert len(verdicts(events_until(client, seq_is(1)))) == 1


def test_a_restart_is_told_and_the_old_starts_end_comes_from_the_journal(box):
    box.add_camera(line_source(rate_hz=30))
    box.start()
    with box.connect(heartbeat_timeout_ms=300) as client:
        first = verdicts(events_until(client, lambda e: isinstance(e, Inspected)))
        assert box.stop() == 0
        box.start()
        events = events_until(client, lambda e: isinstance(e, Restart), 30)
        later = events_until(client, seq_is(10))
    assert any(isinstance(event, Silence) for event in events)
    old = [message.seq for message in first + verdicts(events)]
    stopped = next(line for line in box.log() if line["event"] == "stopped")
    assert old == list(range(old[0], stopped["verdicts"] + 1))
    assert [message.seq for message in verdicts(later)] == list(range(1, 11))
    assert verdicts(later)[-1].boot_id == events[-1].boot_id != first[0].boot_id
    assert box.stop() == 0


def restarted(wire, folder, client, boot="1"):
    """What the client gives out from a start of the daemon that ends now to the first verdict of the next."""
    wire.close()
    after = Wire(folder, boot_id=boot * 32, settings=wire.settings)
    after.send(1)
    events, end_s = [], time.monotonic() + 20
    while not any(message.boot_id[0] == boot for message in verdicts(events)):
        assert time.monotonic() < end_s, events
        after.heartbeat()
        event = client.next(0.1)
        events += [event] if event and not isinstance(event, Heartbeat) else []
    after.close()
    return events


def connected(client, wire):
    """Wait until the client hears this start of the daemon; it says nothing but of the silence before."""
    end_s = time.monotonic() + 10
    while wire.publisher.subscriptions < 2:
        assert time.monotonic() < end_s
        wire.publisher.listen()
        assert isinstance(client.next(0.05), Silence | None)


def numbers(events):
    return [(message.boot_id[0], message.seq) for message in verdicts(events)]


def test_what_was_lost_just_before_a_restart_comes_from_the_journal(wire, tmp_path):
    with wire.client() as client:
        wire.send(3)
        wire.send(2, lost=True)
        events = restarted(wire, tmp_path, client)
    assert numbers(events) == [("0", 1), ("0", 2), ("0", 3), ("0", 4), ("0", 5), ("1", 1)]
    historical = [message.historical for message in verdicts(events)]
    assert historical == [False, False, False, True, True, True]


@pytest.mark.parametrize("from_start", [False, True])
def test_a_daemon_that_stops_while_it_is_asked_answers_at_its_next_start(wire, tmp_path, from_start):
    """Broken on purpose: a client that asks twice and gives up says Gap of parts that the journal has."""
    with wire.client(from_start=from_start) as client:
        wire.send(2, lost=True)
        wire.replay.close()
        wire.heartbeat()
        wire.heartbeat()
        wire.send(2)
        events_until(client, lambda event: isinstance(event, Silence))
        events = restarted(wire, tmp_path, client)
    assert not any(isinstance(event, Gap) for event in events)
    assert numbers(events) == [("0", 1), ("0", 2), ("0", 3), ("0", 4), ("1", 1)]
    assert all(message.historical for message in verdicts(events))


def test_a_start_that_nobody_could_ask_is_told_before_the_next(wire, tmp_path):
    """Broken on purpose: a client that forgets what came while it waited leaves the middle start out."""
    with wire.client() as client:
        wire.send(2, lost=True)
        wire.replay.close()
        wire.heartbeat()
        wire.close()
        middle = Wire(tmp_path, boot_id="1" * 32, settings=wire.settings)
        middle.replay.close()
        connected(client, middle)
        middle.send(3)
        assert client.next(3.0) is None
        events = restarted(middle, tmp_path, client, "2")
    assert numbers(events) == [("0", 1), ("0", 2), ("1", 1), ("1", 2), ("1", 3), ("2", 1)]
    told = [event for event in events if isinstance(event, Gap | Restart)]
    assert told == [Restart("1" * 32), Restart("2" * 32)]


def test_a_daemon_that_never_answers_is_asked_three_times_and_verdicts_go_on(wire, monkeypatch):
    """What came meanwhile is given out afterwards, as historical."""
    monkeypatch.setattr("inspectord.client.ANSWER_S", 0.2)
    asked, ask = [], Requests.ask
    with wire.client() as client:
        monkeypatch.setattr(Requests, "ask", lambda *words: asked.append(words) or ask(*words))
        wire.replay.close()
        wire.send(2, lost=True)
        wire.send(1)
        events, end_s = [], time.monotonic() + 20
        while not verdicts(events):
            assert time.monotonic() < end_s, events
            wire.heartbeat()
            event = client.next(0.1)
            events += [event] if event and not isinstance(event, Heartbeat) else []
        wire.send(1)
        later = events_until(client, seq_is(4))
    assert len(asked) == 3
    assert [event for event in events if isinstance(event, Gap)] == [Gap("cam1", wire.boot_id, 1, 2)]
    found = [(message.seq, message.historical) for message in verdicts(events + later)]
    assert found == [(3, True), (4, False)]


def test_a_port_that_never_answers_and_many_losses_do_not_leave_the_client_behind(wire, monkeypatch):
    """Broken on purpose: where each loss is asked for three times, more and more is held."""
    monkeypatch.setattr("inspectord.client.ANSWER_S", 0.3)
    with wire.client() as client:
        wire.replay.close()
        events, end_s = [], time.monotonic() + 6
        while time.monotonic() < end_s:
            wire.send(1, lost=True)
            wire.send(1)
            wire.heartbeat()
            time.sleep(0.02)
            event = client.next(0.02)
            events += [event] if event else []
        while event := client.next(0.2):
            events.append(event)
        last = wire.seq
        wire.send(1)
        assert [message.historical for message in verdicts([client.next(1.0)])] == [False]  # it is up to date
    told = verdicts(events)
    assert told[-1].seq == last
    assert [message.seq for message in told] == list(range(2, last + 1, 2))
    gaps = [(event.first_seq, event.last_seq) for event in events if isinstance(event, Gap)]
    assert gaps == [(seq, seq) for seq in range(1, last, 2)]


def test_a_client_that_starts_again_has_forgotten_what_it_held(wire, tmp_path):
    client = wire.client()
    wire.send(2, lost=True)
    wire.replay.close()
    wire.heartbeat()
    events_until(client, lambda event: isinstance(event, Silence))
    client.close()
    wire.close()
    after = Wire(tmp_path, boot_id="1" * 32, settings=wire.settings)
    after.send(2)
    client.start()
    events, end_s = [], time.monotonic() + 20
    while not verdicts(events):
        assert time.monotonic() < end_s, events
        after.heartbeat()
        after.send(1)
        event = client.next(0.1)
        events += [event] if event and not isinstance(event, Heartbeat) else []
    client.close()
    after.close()
    assert numbers(events)[0][0] == "1"
    assert not any(isinstance(event, Restart | Gap) for event in events)


def test_two_cameras_that_nobody_tells_of_do_not_hold_up_the_next_start(wire, tmp_path, monkeypatch):
    """Broken on purpose: where each answer begins the count anew, or each camera has its pause, it hangs."""
    monkeypatch.setattr("inspectord.client.ANSWER_S", 0.2)
    with wire.client() as client:
        client._seen["cam0"] = 0  # a camera that the next start does not know
        client._seen["cam2"] = 7
        wire.send(1)
        assert numbers(events_until(client, seq_is(1))) == [("0", 1)]
        wire.close()
        after = Wire(tmp_path, boot_id="1" * 32, settings=wire.settings)
        after.replay.close()
        connected(client, after)
        events, end_s = [], time.monotonic() + 20
        while not verdicts(events):
            assert time.monotonic() < end_s, events
            after.send(1)
            event = client.next(0.1)
            events += [event] if event and not isinstance(event, Heartbeat | Silence) else []
        after.close()
    assert events[0] == Restart("1" * 32)
    assert numbers(events) == [("1", 1)]


def test_the_end_of_a_start_that_no_journal_has_is_a_gap(wire, tmp_path):
    with wire.client() as client:
        wire.send(1)
        wire.publisher.send(make_message(2, boot_id=wire.boot_id))
        assert len(verdicts(events_until(client, seq_is(2)))) == 2
        wire.publisher.histories["cam1"].put(4, encode(make_message(4, boot_id=wire.boot_id)))
        wire.replay.close()
        wire.heartbeat()
        assert isinstance(client.next(3.0), Silence)
        events = restarted(wire, tmp_path, client)
    told = [event for event in events if not isinstance(event, Back)]
    assert told[:2] == [Gap("cam1", "0" * 32, 3, 4), Restart("1" * 32)]


def test_a_killed_daemon_is_silence(box):
    box.add_camera(line_source())
    box.start()
    with box.connect(heartbeat_timeout_ms=300) as client:
        events_until(client, lambda e: isinstance(e, Inspected))
        box.signal(signal.SIGKILL)
        events_until(client, lambda e: isinstance(e, Silence), 3)


def test_the_client_needs_neither_numpy_nor_openvino():
    code = (
        "import sys; from inspectord.client import Client; "
        "print([name for name in ('numpy', 'cv2', 'openvino', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stranger_that_answered_for_a_while_does_not_cut_the_client_off_for_good(tmp_path, monkeypatch):
    """libzmq never calls again where a peer without the right keys answered once, as a plain daemon does."""
    monkeypatch.setattr("inspectord.client.REDIAL_S", 0.5)
    before = Wire(tmp_path)
    client = before.client(heartbeat_timeout_ms=200)
    before.close()
    stranger = Wire(tmp_path / "plain", settings=before.settings, mode="plain")
    events_until(client, lambda event: isinstance(event, Silence))
    time.sleep(2.0)
    stranger.close()
    after = Wire(tmp_path, boot_id="1" * 32, settings=before.settings)
    try:
        end_s = time.monotonic() + 10
        while not isinstance(client.next(0.1), Back):
            after.heartbeat()
            assert time.monotonic() < end_s, "silent for good"
    finally:
        client.close()
        after.close()


def test_a_request_after_a_stranger_answered_in_the_daemons_place_goes_out_anew(tmp_path):
    """Broken on purpose: a send that waits hangs here for ever."""
    before = Wire(tmp_path)
    requests = Requests(zmq.Context.instance(), before.settings.replay, before.keys)
    assert requests.ask({"what": "status"}, 5)["state"]["state"] == "ready"
    before.close()
    for attempt in range(20):  # until libzmq has given the connection up; now and then it notices no stranger
        stranger = Wire(tmp_path / f"plain{attempt}", settings=before.settings, mode="plain")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not requests._socket.poll(0, zmq.POLLOUT), timeout_s=2.0)
        stranger.close()
        if not requests._socket.poll(0, zmq.POLLOUT):
            break
    after = Wire(tmp_path, boot_id="1" * 32, settings=before.settings)
    try:
        assert not requests._socket.poll(0, zmq.POLLOUT)
        assert requests.ask({"what": "status"}, 5)["state"]["state"] == "ready"
    finally:
        requests.close()
        after.close()
