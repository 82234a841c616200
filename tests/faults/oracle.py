"""The oracle: what the line handed out against what subscribers heard. A pure function over the evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

from inspectord.client import Gap, Inspected
from inspectord.messages import Verdict, VerdictMessage, to_table
from tests.faults.evidence import Boot, Evidence
from tests.faults.oracle_row import of_camera
from tests.faults.promises import Promises

__all__ = ["Promises", "tally", "violations"]
Said: TypeAlias = dict[int, VerdictMessage]  # by seq


def violations(evidence: Evidence, promises: Promises | None = None) -> list[str]:
    """Every broken promise in words; [] where all were kept."""
    promises = promises or Promises()
    found = [f"unreadable or unknown message: {stray}" for stray in evidence.strays]
    for boot in evidence.boots:
        cameras = {run.camera for run in boot.cameras} | {each.message.camera for each in boot.heard}
        for camera in sorted(cameras):
            found += [f"{camera}: {text}" for text in of_camera(boot, camera, promises)]
        found += _silences(boot, promises)
    found += _twice(evidence) + _journal(evidence, promises) + _client(evidence, promises)
    return found


def _silences(boot: Boot, promises: Promises) -> list[str]:
    """Promise 8."""
    if promises.heartbeat_gap_s is None:
        return []
    times = [t_ns for t_ns, _ in boot.beats_ns]
    gaps = [(after - before) / 1e9 for before, after in pairwise(times)]
    return [f"no heartbeat for {gap:.2f} s" for gap in gaps if gap > promises.heartbeat_gap_s]


def _twice(evidence: Evidence) -> list[str]:
    """Promise 6."""
    found = []
    ids = Counter(boot.boot_id for boot in evidence.boots)
    found += [f"boot_id {boot_id} was used {count} times" for boot_id, count in ids.items() if count > 1]
    starts: dict[tuple[str, str], set[str]] = {}
    for boot in evidence.boots:
        for heard in boot.heard:
            message = heard.message
            if message.part_id:
                starts.setdefault((message.camera, message.part_id), set()).add(boot.boot_id)
    return found + [
        f"{camera}: {part} was decided by {len(ids)} daemons"
        for (camera, part), ids in starts.items()
        if len(ids) > 1
    ]


def _journal(evidence: Evidence, promises: Promises) -> list[str]:
    """Promise 7."""
    found: list[str] = []
    if evidence.journal is None:
        return found
    for boot in evidence.boots:
        for camera, said in _said(boot).items():
            rows = evidence.journal.get((boot.boot_id, camera), [])
            found += [f"{camera}: {text}" for text in _rows(boot, said, rows, promises)]
    return found


def _rows(boot: Boot, said: Said, rows: list[dict[str, Any]], promises: Promises) -> list[str]:
    found = []
    seqs = [row["seq"] for row in rows]
    if seqs != sorted(set(seqs)):
        found.append("journal rows twice or out of order")
    by_seq = dict(zip(seqs, rows, strict=True))
    for seq in said.keys() & by_seq.keys():
        if _plain(said[seq]) != by_seq[seq]:
            found.append(f"seq {seq} in the journal is not as it was published")
    lacking = sorted(said.keys() - by_seq.keys())
    died_unwritten = boot.ended != "in order" and all(seq > max(seqs, default=0) for seq in lacking)
    if lacking and promises.journal_complete and not died_unwritten:
        found.append(f"{len(lacking)} verdicts from seq {lacking[0]} are not in the journal")
    if boot.ended == "in order" and promises.subscriber_complete and by_seq.keys() - said.keys():
        found.append("the journal has verdicts that nobody heard")
    return found


def _plain(message: VerdictMessage) -> dict[str, Any]:
    """As JSON gives it back."""
    table = to_table(message)
    return table | {"boxes": [list(box) for box in table["boxes"]]}


def _client(evidence: Evidence, promises: Promises) -> list[str]:
    """Promise 9."""
    found: list[str] = []
    last: dict[tuple[str, str], int] = {}
    said = {(boot.boot_id, camera): row for boot in evidence.boots for camera, row in _said(boot).items()}
    died = {boot.boot_id for boot in evidence.boots if boot.ended != "in order"}
    for _, event in evidence.client:
        if isinstance(event, Inspected):
            message = event.message
            key = (message.boot_id, message.camera)
            found += [f"client: {text}" for text in _given(message, last.get(key, 0), said.get(key, {}))]
            last[key] = message.seq
        elif isinstance(event, Gap):
            key = (event.boot_id, event.camera)
            last[key] = max(last.get(key, 0), event.last_seq)
            if event.boot_id not in died and not promises.client_gaps:
                found.append(f"client: {event}")
    for boot in evidence.boots[:-1]:  # of the last one, the end may not have been read yet
        for camera, row in _said(boot).items():
            given = last.get((boot.boot_id, camera))
            if boot.ended == "in order" and given is not None and given < max(row):
                found.append(f"client: {camera} ends at seq {given} of {max(row)}")
    return found


def _given(message: VerdictMessage, last: int, said: Said) -> list[str]:
    """What is wrong with one verdict of the client after the one with seq `last`."""
    where, found = f"{message.camera} seq {message.seq}", []
    if message.seq <= last:
        found.append(f"{where} again, or out of order")
    elif message.seq > last + 1:
        found.append(f"{where} comes after {last} without a Gap")
    published = said.get(message.seq)
    if published is not None and replace(published, historical=message.historical) != message:
        found.append(f"{where} is not what was published")
    return found


def _said(boot: Boot) -> dict[str, Said]:
    """What was heard of each camera, by seq."""
    said: dict[str, Said] = {}
    for heard in boot.heard:
        said.setdefault(heard.message.camera, {})[heard.message.seq] = heard.message
    return said


def tally(evidence: Evidence) -> dict[str, int]:
    """Verdicts heard, by kind."""
    kinds = Counter(each.message.verdict.value for boot in evidence.boots for each in boot.heard)
    return {"verdicts": sum(kinds.values()), **{verdict.value: kinds[verdict.value] for verdict in Verdict}}
