"""The replay socket: bounded answers to anything at all, from memory and from the journal."""

import json
import time

import pytest
import zmq
from helpers_daemon import events_until, free_endpoint, make_message, verdicts
from helpers_wire import Wire, seq_is

from inspectord.client import Client
from inspectord.errors import MessageError, StateError
from inspectord.messages import decode, encode
from inspectord.publish import History
from inspectord.replay import CHUNK, Replayer


@pytest.fixture
def wire(tmp_path):
    wire = Wire(tmp_path)
    yield wire
    wire.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"garbage",
        b"[1]",
        b"{}",
        b'{"what": "replay"}',
        b'{"what": "replay", "camera": ["cam1"]}',
        b'{"what": "replay", "camera": "cam1", "from_seq": -1}',
        b'{"what": "replay", "camera": "cam1", "from_seq": 1e99}',
        b'{"what": "replay", "camera": "cam1", "to_seq": "9; DROP TABLE verdicts"}',
        b'{"what": "replay", "camera": "cam1", "from_seq": 99999999999999999999999999}',
        b'{"what": {"a": 1}}',
        b"{" * 4000,
    ],
)
def test_a_wrong_request_gets_an_error_and_the_daemon_goes_on(wire, request_):
    socket = wire.socket(zmq.REQ, wire.settings.replay)
    socket.send(request_)
    assert "error" in json.loads(socket.recv())
    socket.send(b'{"what": "status"}')
    assert json.loads(socket.recv())["state"]["state"] == "ready"


def test_an_absurd_range_is_bounded(tmp_path):
    histories = {"cam1": History(1000)}
    for seq in range(1, 1001):
        histories["cam1"].put(seq, encode(make_message(seq)))
    replayer = Replayer("0" * 32, histories, tmp_path / "none", dict)
    request = {"what": "replay", "camera": "cam1", "from_seq": 1, "to_seq": 2**62}
    reply = json.loads(replayer.answer(json.dumps(request).encode()))
    assert len(reply["verdicts"]) == CHUNK
    assert reply["next_seq"] == CHUNK + 1
    assert all(table["historical"] for table in reply["verdicts"])
    beyond = json.loads(replayer.answer(json.dumps(request | {"from_seq": 2**61}).encode()))
    assert (beyond["verdicts"], beyond["next_seq"]) == ([], None)


def test_no_daemon_is_a_clear_error():
    with pytest.raises(StateError, match="no inspectord answers at tcp://127"):
        Client(free_endpoint(), free_endpoint(), connect_s=0.2).start()


def test_a_refused_request_is_a_message_error(wire):
    with wire.client() as client, pytest.raises(MessageError, match="unknown request"):
        client._requests.ask({"what": "nonsense"}, 2)


def test_a_message_of_the_wire_is_what_the_schema_says(wire):
    socket = wire.socket(zmq.SUB, wire.settings.verdicts)
    socket.setsockopt(zmq.SUBSCRIBE, b"verdict/")
    time.sleep(0.2)
    wire.send(1)
    assert decode(socket.recv_multipart()[1]) == make_message(1)


def test_what_memory_has_forgotten_comes_from_the_journal(tmp_path):
    wire = Wire(tmp_path, depth=10)
    with wire.client() as client:
        wire.send(2 * CHUNK + 50, lost=True)
        wire.journal.close()
        wire.send(1)
        last = 2 * CHUNK + 51
        found = verdicts(events_until(client, seq_is(last)))
    assert [message.seq for message in found] == list(range(1, last + 1))
    wire.close()
