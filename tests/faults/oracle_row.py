"""The oracle on one camera's row of verdicts: promises 1 to 5, and 10 of promises.py."""

from __future__ import annotations

from collections import Counter

from inspectord.messages import Reason, Verdict, VerdictMessage
from tests.faults.evidence import Boot, CameraRun, Handed, Heard, Inferred
from tests.faults.inject.injected import parts
from tests.faults.promises import Promises

REASONS = {
    "OK": {
        Reason.LATE,
        Reason.NOT_FINITE,
        Reason.INFERENCE_FAILED,
        Reason.DISPLACED,
        Reason.CAMERA_LOST,
        Reason.STOPPING,
        Reason.NOT_JOURNALED,
    },
    "INCOMPLETE": {Reason.INCOMPLETE},
    "LOST": {Reason.FRAME_LOST},
    "WRONG_SHAPE": {Reason.WRONG_SHAPE},
    "UNREADABLE": {Reason.UNREADABLE},
}


def of_camera(boot: Boot, camera: str, promises: Promises) -> list[str]:
    heard = [each for each in boot.heard if each.message.camera == camera]
    runs = [run for run in boot.cameras if run.camera == camera]
    inferred = {each.code: each for each in boot.inferred if each.camera == camera}
    found = _numbering(heard, promises) + _topics(heard)
    matched, problems = _match(boot, runs, [each.message for each in heard], promises)
    found += problems
    for message, handed in matched:
        found += _decision(message, handed, inferred)
    for run in runs:
        found += _exposures(run)
    return found


def _numbering(heard: list[Heard], promises: Promises) -> list[str]:
    """Promise 1."""
    found, expected = [], 1
    for each in heard:
        seq = each.message.seq
        if seq < expected or (seq > expected and promises.subscriber_complete):
            what = "missing" if seq > expected else "again, or out of order"
            found.append(f"seq {expected} expected, {seq} came: {what}")
        expected = seq + 1
    return found


def _topics(heard: list[Heard]) -> list[str]:
    return [
        f"seq {each.message.seq} is {each.message.verdict} under the topic {each.topic}"
        for each in heard
        if each.topic.rpartition("/")[2] != each.message.verdict
    ]


def _key(item: Handed | VerdictMessage) -> int:
    return item.fetched_ns if isinstance(item, Handed) else item.t_fetch_ns


def _match(
    boot: Boot, runs: list[CameraRun], messages: list[VerdictMessage], promises: Promises
) -> tuple[list[tuple[VerdictMessage, Handed]], list[str]]:
    """Promises 2, 3 and 5: verdicts and headers side by side, by the time at which each was fetched."""
    headers = [handed for run in runs for handed in run.handed]
    place = {_key(handed): index for index, handed in enumerate(headers)}
    matched: list[tuple[VerdictMessage, Handed]] = []
    found: list[str] = []
    marks, last = 0, -1
    has: Counter[int] = Counter()
    for message in messages:
        index = place.get(_key(message))
        if index is None:
            marks += 1
            if message.reason is not Reason.CAMERA_LOST or message.frame_id != -1:
                found.append(f"seq {message.seq}: a verdict ({_words(message)}) for no trigger of the line")
            continue
        if index < last:
            found.append(f"seq {message.seq} is decided behind a later trigger")
        last = max(last, index)
        has[index] += 1
        matched.append((message, headers[index]))
    found += [f"{headers[i].part_id or i}: {count} verdicts" for i, count in has.items() if count > 1]
    if marks > len(runs):
        found.append(f"{marks} camera_lost marks of {len(runs)} camera processes")
    if promises.subscriber_complete:
        lacking = [i for i in range(len(headers)) if i not in has]
        found += _without_verdict(boot, runs, headers, lacking, last)
    return matched, found


def _without_verdict(
    boot: Boot, runs: list[CameraRun], headers: list[Handed], lacking: list[int], last: int
) -> list[str]:
    """Headers without a verdict, but for those that may have none."""
    allowed, end = set(), 0
    for run in runs:
        end += len(run.handed)
        if not run.closed and run.handed:
            allowed.add(end - 1)  # it was being handed over when the camera process was killed
    found = []
    for index in lacking:
        behind_all = boot.ended in ("killed", "gave up", "running") and index > last
        if index not in allowed and not behind_all:
            found.append(
                f"no verdict for {headers[index].part_id or headers[index]} ({headers[index].status})"
            )
    return found


def _decision(message: VerdictMessage, handed: Handed, inferred: dict[int | None, Inferred]) -> list[str]:
    """Promise 4, and the identity of promise 2."""
    where, found = f"seq {message.seq}", []
    for mine, theirs in {"part_id": "part_id", "frame_id": "frame_id", "encoder": "encoder"}.items():
        if getattr(message, mine) != getattr(handed, theirs):
            found.append(f"{where}: {mine} {getattr(message, mine)!r} is not {getattr(handed, theirs)!r}")
    if handed.trigger_id >= 0 and message.trigger_id != handed.trigger_id:
        found.append(f"{where}: trigger_id {message.trigger_id} is not {handed.trigger_id}")
    if message.t_exposure_ns != handed.exposed_ns:
        found.append(f"{where}: t_exposure_ns {message.t_exposure_ns} is not {handed.exposed_ns}")
    if message.verdict is Verdict.NOT_INSPECTED:
        if message.reason not in REASONS[handed.status]:
            found.append(f"{where}: {message.reason} does not fit a frame that came {handed.status}")
        return found
    return found + [f"{where}: {message.verdict} {text}" for text in _doubts(message, handed, inferred)]


def _doubts(message: VerdictMessage, handed: Handed, inferred: dict[int | None, Inferred]) -> list[str]:
    """Why this PASS or REJECT should not be."""
    deadline_ns = message.t_fetch_ns + message.deadline_ms * 1e6
    found = []
    if handed.status != "OK":
        found.append(f"of a frame that came {handed.status}")
    if message.t_decided_ns > deadline_ns:
        found.append(f"{(message.t_decided_ns - deadline_ns) / 1e6:.1f} ms after its deadline")
    ran = inferred.get(handed.code)
    if handed.code is None or ran is None:
        return [*found, f"of {handed.part_id}, whose inference never ended"]
    if ran.score is None or message.score != ran.score:
        found.append(f"with score {message.score}, inference gave {ran.score}")
    if not ran.t_ns <= deadline_ns:
        found.append("of an inference that ended after the deadline")
    if ran.recipe_hash != message.recipe_hash or ran.limit != message.limit:
        found.append("under another recipe than the one that was run")
    within = ran.score is not None and ran.score <= ran.limit
    if within is not (message.verdict is Verdict.PASS):
        found.append(f"with score {ran.score} and limit {ran.limit}")
    if parts.is_good(handed.code & (1 << parts.CAMERA_SHIFT) - 1) is not (message.verdict is Verdict.PASS):
        found.append("of a part that is the opposite in truth")
    return found


def _exposures(run: CameraRun) -> list[str]:
    """Promise 10: what a GenTL camera exposed against what its source handed out, one by one."""
    shots = list(run.shots)
    while shots and shots[0]["fate"] == "LOST":  # before the first frame, nobody can know of them
        shots.pop(0)
    expected = [(shot["fate"], shot["code"] if shot["fate"] == "OK" else None) for shot in shots]
    handed = [(header.status, header.code) for header in run.handed]
    if not run.shots:
        return []
    for number, (mine, theirs) in enumerate(zip(expected, handed, strict=False)):
        if mine != theirs:
            return [f"exposure {shots[number]['number']} is {mine}, its header {theirs}"]
    if len(handed) > len(expected):
        return [f"{len(handed)} headers of {len(expected)} exposures"]
    # What one fetch brought is handed out one by one; the process may end in the middle of that.
    rest = shots[len(handed) :]
    if rest and rest[0]["fetch"] != shots[-1]["fetch"]:
        return [f"exposure {rest[0]['number']} and those behind it have no header"]
    return []


def _words(message: VerdictMessage) -> str:
    return f"{message.verdict}/{message.reason} {message.part_id!r} frame {message.frame_id}"
