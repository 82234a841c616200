"""The message: exactly its fields, valid for its schema, and no garbage taken for one."""

import json
import math
from dataclasses import fields, replace
from importlib.resources import files

import jsonschema
import pytest
from helpers_daemon import make_message

from inspectord.errors import MessageError, SettingsError
from inspectord.messages import (
    LARGEST_BYTES,
    Reason,
    Verdict,
    VerdictMessage,
    check_encoding,
    decode,
    encode,
    verdict_topic,
)

SCHEMA = json.loads(files("inspectord").joinpath("verdict.schema.json").read_text())


def valid(payload: bytes) -> None:
    jsonschema.validate(json.loads(payload), SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_message_survives_the_wire(encoding):
    message = make_message(7, boxes=((1, 2, 3, 4),), part_id='Ü"\n😀', score=0.1)
    assert decode(encode(message, encoding)) == message


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_message_is_valid_for_the_schema(verdict):
    valid(encode(make_message(1, verdict=verdict, score=None, inference_ms=None)))
    valid(encode(make_message(2, verdict=verdict, boxes=((0, 0, 1, 1),) * 16)))


def test_the_schema_has_exactly_the_fields_of_the_message():
    names = {field.name for field in fields(VerdictMessage)}
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == names
    assert not SCHEMA["additionalProperties"]


def test_the_schema_knows_every_verdict_and_reason():
    assert SCHEMA["properties"]["verdict"]["enum"] == [str(each) for each in Verdict]
    assert SCHEMA["properties"]["reason"]["enum"] == [str(each) for each in Reason]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_null_on_the_wire(score):
    payload = encode(make_message(1, verdict=Verdict.NOT_INSPECTED, score=score))
    valid(payload)
    assert decode(payload).score is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xc1",
        b"[" * 100_000,
        b'{"schema": "other"}',
        b"{" * 2_000_000,
    ],
)
def test_garbage_is_one_clear_error(payload):
    with pytest.raises(MessageError):
        decode(payload)


def test_a_newer_schema_names_both_versions():
    table = json.loads(encode(make_message(1))) | {"schema": "inspectord/verdict/2"}
    with pytest.raises(MessageError, match=r"verdict/2.*verdict/1"):
        decode(json.dumps(table).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", "OK"),
        ("seq", "1"),
        ("seq", True),
        ("score", "0.1"),
        ("boxes", [[1, 2, 3]]),
        ("simulated", 1),
        ("reason", None),
        ("limit", None),
        ("verdict", []),
    ],
)
def test_a_wrong_value_is_named(field, value):
    table = json.loads(encode(make_message(1))) | {field: value}
    with pytest.raises(MessageError, match=field):
        decode(json.dumps(table).encode())


def test_nan_in_json_is_refused():
    payload = encode(make_message(1, score=0.5)).replace(b'"score":0.5', b'"score":NaN')
    with pytest.raises(MessageError, match="NaN"):
        decode(payload)


def test_missing_and_unknown_fields_are_refused():
    table = json.loads(encode(make_message(1)))
    with pytest.raises(MessageError, match="colour"):
        decode(json.dumps(table | {"colour": "red"}).encode())
    del table["encoder"]
    with pytest.raises(MessageError, match="encoder"):
        decode(json.dumps(table).encode())


def test_a_message_is_far_below_the_largest_size():
    largest = make_message(2**62, boxes=((8191,) * 4,) * 16, part_id="😀" * 20)
    assert len(encode(largest)) * 256 < LARGEST_BYTES


def test_topics_name_station_camera_and_verdict():
    assert verdict_topic("s1", "cam1", Verdict.REJECT) == b"verdict/s1/cam1/REJECT"


def test_a_missing_msgpack_says_what_to_install(monkeypatch):
    monkeypatch.setattr("inspectord.messages.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install msgpack"):
        check_encoding("msgpack")


def test_historical_is_never_set_by_accident():
    assert make_message(1).historical is False
    assert replace(make_message(1), historical=True) != make_message(1)
