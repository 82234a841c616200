"""Faults on a real line in their short form, and the proof that the oracle sees what it should.

The long form is `make soak`: every fault 20 times, 200 random pairs, half an hour without any.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from inspectord.client import Inspected
from inspectord.messages import Reason, Verdict
from tests.faults.evidence import Evidence
from tests.faults.inject.injected import parts
from tests.faults.line import Line, Setup
from tests.faults.oracle import Promises, tally, violations
from tests.faults.registry import load_all
from tests.faults.trial import pairs_of, try_in_turn, try_pair

# --- the oracle ---


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A second of a line without any fault."""
    with Line(tmp_path_factory.mktemp("line")) as line:
        line.parts(40)
    return line.evidence()


@pytest.fixture
def evidence(honest):
    return copy.deepcopy(honest)


def test_an_honest_run_has_no_violations(honest: Evidence) -> None:
    assert violations(honest) == []
    counts = tally(honest)
    assert counts["PASS"] > 20
    assert counts["REJECT"] > 5


def heard_of(evidence: Evidence, verdict: Verdict) -> int:
    return next(i for i, each in enumerate(evidence.boots[0].heard) if each.message.verdict is verdict)


def change(evidence: Evidence, index: int, **fields: object) -> None:
    heard = evidence.boots[0].heard
    message = replace(heard[index].message, **fields)
    topic = f"verdict/line/cam1/{message.verdict}"
    heard[index] = replace(heard[index], message=message, topic=topic)


def lose(evidence):
    del evidence.boots[0].heard[10]


def repeat(evidence):
    evidence.boots[0].heard.insert(10, evidence.boots[0].heard[9])


def swap(evidence):
    heard = evidence.boots[0].heard
    heard[10], heard[11] = heard[11], heard[10]


def renumber(evidence):
    """Two parts change places, and seq says nothing of it."""
    first, second = (evidence.boots[0].heard[i].message for i in (10, 11))
    change(
        evidence, 10, **{n: getattr(second, n) for n in ("part_id", "trigger_id", "frame_id", "t_fetch_ns")}
    )
    change(
        evidence, 11, **{n: getattr(first, n) for n in ("part_id", "trigger_id", "frame_id", "t_fetch_ns")}
    )


def invent(evidence):
    change(evidence, 10, t_fetch_ns=1)


def pass_a_bad_part(evidence):
    change(evidence, heard_of(evidence, Verdict.REJECT), verdict=Verdict.PASS)


def reject_a_good_part(evidence):
    change(evidence, heard_of(evidence, Verdict.PASS), verdict=Verdict.REJECT)


def pass_without_inference(evidence):
    boot, index = evidence.boots[0], heard_of(evidence, Verdict.PASS)
    number = boot.heard[index].message.trigger_id
    boot.inferred = [each for each in boot.inferred if each.code != parts.code_of(0, number)]


def pass_of_nan(evidence):
    boot, index = evidence.boots[0], heard_of(evidence, Verdict.PASS)
    number = boot.heard[index].message.trigger_id
    boot.inferred = [
        replace(each, score=None) if each.code == parts.code_of(0, number) else each for each in boot.inferred
    ]


def pass_of_a_faulty_frame(evidence):
    index = heard_of(evidence, Verdict.PASS)
    handed = evidence.boots[0].cameras[0].handed
    handed[index] = replace(handed[index], status="INCOMPLETE")


def pass_after_the_deadline(evidence):
    message = evidence.boots[0].heard[heard_of(evidence, Verdict.PASS)].message
    late_ns = message.t_fetch_ns + round(message.deadline_ms * 1e6) + 1
    change(evidence, heard_of(evidence, Verdict.PASS), t_decided_ns=late_ns)


def another_recipe(evidence):
    change(evidence, heard_of(evidence, Verdict.PASS), recipe_hash="f" * 64)


def a_reason_that_does_not_fit(evidence):
    change(evidence, 10, verdict=Verdict.NOT_INSPECTED, reason=Reason.UNREADABLE, score=None)


def a_topic_that_says_otherwise(evidence):
    index = heard_of(evidence, Verdict.REJECT)
    heard = evidence.boots[0].heard
    heard[index] = replace(heard[index], topic="verdict/line/cam1/PASS")


def forget_in_the_journal(evidence):
    next(iter(evidence.journal.values())).pop(10)


def rewrite_the_journal(evidence):
    next(iter(evidence.journal.values()))[10]["verdict"] = "REJECT"


def fall_silent(evidence):
    beats = evidence.boots[0].beats_ns
    beats[-1] = (beats[-1][0] + 2 * 10**9, beats[-1][1])


def client_skips(evidence):
    places = [i for i, (_, event) in enumerate(evidence.client) if isinstance(event, Inspected)]
    del evidence.client[places[len(places) // 2]]


def client_repeats(evidence):
    place = next(i for i, (_, event) in enumerate(evidence.client) if isinstance(event, Inspected))
    evidence.client.insert(place, evidence.client[place])


def decide_again_after_a_restart(evidence):
    again = copy.deepcopy(evidence.boots[0])
    again.boot_id = "f" * 32
    again.heard = [replace(each, message=replace(each.message, boot_id="f" * 32)) for each in again.heard]
    evidence.journal = None
    evidence.boots.append(again)


LIES = {
    lose: "missing",
    repeat: "again, or out of order",
    swap: "out of order",
    renumber: "behind a later trigger",
    invent: "for no trigger of the line",
    pass_a_bad_part: "PASS of a part that is the opposite in truth",
    reject_a_good_part: "REJECT of a part that is the opposite in truth",
    pass_without_inference: "whose inference never ended",
    pass_of_nan: "inference gave None",
    pass_of_a_faulty_frame: "of a frame that came INCOMPLETE",
    pass_after_the_deadline: "after its deadline",
    another_recipe: "under another recipe",
    a_reason_that_does_not_fit: "does not fit",
    a_topic_that_says_otherwise: "under the topic",
    forget_in_the_journal: "are not in the journal",
    rewrite_the_journal: "not as it was published",
    fall_silent: "no heartbeat for",
    client_skips: "without a Gap",
    client_repeats: "again, or out of order",
    decide_again_after_a_restart: "was decided by 2 daemons",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_the_oracle_sees_every_lie(evidence: Evidence, lie) -> None:
    lie(evidence)
    assert any(LIES[lie] in text for text in violations(evidence)), violations(evidence)


def test_only_a_killed_daemon_may_take_the_end_of_the_row_with_it(evidence: Evidence) -> None:
    boot = evidence.boots[0]
    del boot.heard[-3:]
    assert any("no verdict for" in text for text in violations(evidence))
    boot.ended = "killed"
    evidence.client = []
    assert violations(evidence) == []


def test_only_the_frame_in_a_killed_cameras_hands_may_lack_a_verdict(evidence: Evidence) -> None:
    boot = evidence.boots[0]
    del boot.heard[-1:]
    evidence.client = []
    evidence.journal = None
    assert any("no verdict for" in text for text in violations(evidence))
    boot.cameras[0].closed = False
    assert violations(evidence) == []


# --- seeded bugs in a real daemon ---

SEEDED = {
    "drop_one": "missing",
    "send_twice": "again, or out of order",
    "swap_two": "out of order",
    "wrong_part": "part_id",
    "pass_nan": "inference gave None",
    "no_deadline": "of an inference that ended after the deadline",
    "stale_score": "whose inference never ended",
}


@pytest.mark.parametrize("bug", SEEDED)
def test_a_bug_in_the_daemon_is_caught(tmp_path, bug: str) -> None:
    with Line(tmp_path / "line", Setup(bug=bug, rate_hz=100.0, deadline_ms=200.0)) as line:
        if bug == "no_deadline":
            line.carried_out(line.inject("cam1", "wait", "late", 3, ms=250))
        else:
            line.carried_out(line.inject("cam1", "result", "score", 3, value="nan"))
        line.parts(30)
    found = violations(line.evidence(), Promises(journal_complete=False))
    assert any(SEEDED[bug] in text for text in found), found


# --- faults ---

TOURS = {
    "frames and inference": [
        "frames_without_pixels",
        "frames_of_wrong_size",
        "times_of_camera_wrong",
        "ids_of_camera_jump",
        "burst",
        "line_stopped",
        "inference_raises",
        "score_not_finite",
        "tile_or_map_not_finite",
        "output_of_wrong_shape",
        "device_lost",
        "reload_under_load",
        "reload_of_broken_recipe",
        "clock_stepped",
        "clock_across_summer_time",
        "camera_killed",
        "source_raises",
    ],
    "producer": [
        "buffers_incomplete",
        "frame_ids_gap",
        "frame_ids_wrap",
        "frame_ids_reset",
        "frames_twice",
        "buffers_wrong",
        "timestamps_wrong",
        "clock_stepped_before_idle_camera",
        "producer_raises_try_fetch",
        "producer_raises_start",
    ],
    "daemon": [
        "inference_late",
        "inference_slow",
        "inference_hangs",
        "daemon_killed",
        "daemon_stopped_and_started",
        "start_with_broken_recipe",
    ],
}


@pytest.mark.parametrize("tour", TOURS)
def test_no_part_is_lost_or_falsely_passed_under(tour: str) -> None:
    possible = [name for name in TOURS[tour] if load_all()[name].needs() is None]
    row = try_in_turn(possible, seed=1)
    assert row.violations == []
    assert row.tried == len(possible) > 5


@pytest.mark.parametrize("number", range(2))
def test_no_part_is_lost_or_falsely_passed_under_two_faults_at_once(number: int) -> None:
    pair = pairs_of(2, seed=7)[number]
    row = try_pair(pair, 7, number, timed=False)
    assert row.violations == [], pair


def test_every_fault_says_what_it_does() -> None:
    assert all(fault.what for fault in load_all().values())
    assert len(load_all()) > 60
