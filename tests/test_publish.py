"""The publisher: real sockets, nobody waits for a slow subscriber, and nobody steals an endpoint."""

import time

import pytest
import zmq
from helpers_daemon import free_endpoint, make_message

from inspectord.errors import StateError
from inspectord.health import Health
from inspectord.messages import Verdict, decode, unpack
from inspectord.publish import Heart, History, Publisher
from inspectord.settings import Publish, Security
from inspectord.zap import Gate


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def settings():
    return Publish(verdicts=free_endpoint(), replay=free_endpoint(), replay_depth=10)


@pytest.fixture
def gate(context, settings):
    gate = Gate(context, Security(mode="plain"), settings, Health())
    yield gate
    gate.close()


@pytest.fixture
def publisher(context, settings, gate):
    publisher = Publisher(context, settings, ["cam1"], gate)
    yield publisher
    publisher.close()


def subscribe(context, settings, topic=b""):
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 3000)
    socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(settings.verdicts)
    time.sleep(0.2)
    return socket


def heartbeat(publisher):
    publisher.listen()
    publisher.send_heartbeat({"station": "s1"})


def test_a_verdict_comes_with_its_topic(context, settings, publisher):
    socket = subscribe(context, settings)
    publisher.send(make_message(1, verdict=Verdict.REJECT))
    topic, payload = socket.recv_multipart()
    assert topic == b"verdict/s1/cam1/REJECT"
    assert decode(payload) == make_message(1, verdict=Verdict.REJECT)


def test_a_plc_can_take_rejects_alone(context, settings, publisher):
    socket = subscribe(context, settings, b"verdict/s1/cam1/REJECT")
    publisher.send(make_message(1))
    publisher.send(make_message(2, verdict=Verdict.REJECT))
    assert decode(socket.recv_multipart()[1]).seq == 2


def test_a_stalled_subscriber_does_not_slow_the_line(context, settings, publisher):
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(settings.verdicts)
    time.sleep(0.2)
    slowest_s = 0.0
    for seq in range(1, 30_001):
        began_s = time.monotonic()
        publisher.send(make_message(seq))
        slowest_s = max(slowest_s, time.monotonic() - began_s)
    assert slowest_s < 1.0
    assert publisher.send_errors == 0


def test_subscriptions_are_counted_and_forgotten(context, settings, publisher):
    sockets = [subscribe(context, settings, b"verdict/") for _ in range(2)]
    heartbeat(publisher)
    assert publisher.subscriptions == 2
    sockets[0].close(0)
    end_s = time.monotonic() + 3
    while publisher.subscriptions != 1 and time.monotonic() < end_s:
        time.sleep(0.02)
        heartbeat(publisher)
    assert publisher.subscriptions == 1


def test_heartbeats_come_on_time_and_the_last_one_says_so(context, settings, publisher):
    state = {"station": "s1", "state": "ready"}
    socket = subscribe(context, settings, b"heartbeat/s1")
    heart = Heart(publisher, 20, lambda: state, Health())
    began_s = time.monotonic()
    for _ in range(10):
        assert unpack(socket.recv_multipart()[1])["state"] == "ready"
    assert time.monotonic() - began_s < 1.0
    state["state"] = "stopping"
    heart.close()
    while unpack(socket.recv_multipart()[1])["state"] != "stopping":
        pass


def test_a_port_in_use_names_the_endpoint_and_the_next_step(context, settings, publisher, gate):
    with pytest.raises(StateError, match=rf"{settings.verdicts} is in use.*publish\.verdicts"):
        Publisher(context, settings, ["cam1"], gate)


def test_an_ipc_path_is_not_stolen(context, gate, tmp_path):
    """Without the lock file the second bind succeeds and the first daemon is silent from then on."""
    settings = Publish(verdicts=f"ipc://{tmp_path}/verdicts")
    first = Publisher(context, settings, ["cam1"], gate)
    with pytest.raises(StateError, match="in use by another inspectord"):
        Publisher(context, settings, ["cam1"], gate)
    first.close()
    Publisher(context, settings, ["cam1"], gate).close()


def test_an_address_that_is_not_ours_is_a_clear_error(context, gate):
    with pytest.raises(StateError, match=r"can't bind tcp://192\.0\.2\.1:5570.*publish\.verdicts"):
        Publisher(context, Publish(verdicts="tcp://192.0.2.1:5570"), ["cam1"], gate)


def test_history_keeps_the_newest_and_forgets_the_oldest():
    history = History(depth=3)
    for seq in range(1, 6):
        history.put(seq, b"%d" % seq)
    assert [history.get(seq) for seq in range(1, 7)] == [None, None, b"3", b"4", b"5", None]
    assert history.last_seq == 5
