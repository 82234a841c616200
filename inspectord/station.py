"""One camera's pipeline in a thread of its own: ring -> examine -> publish -> release -> journal, images."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from inspectord.examine import Examiner, Outcome, not_inspected
from inspectord.frame import Frame, FrameHeader, FrameStatus
from inspectord.health import Health, spawn
from inspectord.images import Images, RejectedFrame
from inspectord.journal import Journal
from inspectord.judge import REASON_OF_STATUS
from inspectord.messages import Reason, Verdict, VerdictMessage
from inspectord.publish import Publisher
from inspectord.ring import Ring
from inspectord.settings import Camera

BLIND_AFTER = 10  # parts in a row without an inspection
LATELY, MANY = 20, 3  # of so many parts so many without one are more than a chance
ADVICE = {Reason.LATE: "; allow more with deadline_ms, or fit a quicker recipe, as with --backbone lite"}
SLICE_S = 0.25  # waits are cut, so that the watchdog sees a live thread
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where verdicts go, in this order."""

    publisher: Publisher
    journal: Journal
    images: Images | None


class Station:
    """Exactly one verdict for every frame of the ring, in its order."""

    def __init__(
        self, camera: Camera, identity: tuple[str, str], ring: Ring, examiner: Examiner, outlets: Outlets
    ) -> None:
        self.name = camera.name
        self.examiner = examiner
        self.counts: Counter[Verdict] = Counter()
        self.seq = 0
        self._lately: deque[Reason | None] = deque(maxlen=LATELY)  # why not, of the last verdicts
        self._told = False
        self._station, self._boot_id = identity
        self._camera, self._ring, self._outlets = camera, ring, outlets
        self._finish_by: float | None = None
        self._thread: threading.Thread | None = None

    @property
    def blind(self) -> bool:
        """True where none of the last frames could be inspected: a wrong size, or too short a deadline."""
        last = list(self._lately)[-BLIND_AFTER:]
        return len(last) == BLIND_AFTER and all(last)

    @property
    def uninspected(self) -> str:
        """How many of the last parts were not inspected and why, in words; empty where few were."""
        lately = self._lately.copy()  # which the station's thread goes on with
        reasons = [reason for reason in lately if reason is not None]
        if len(reasons) < MANY:
            return ""
        reason = Counter(reasons).most_common(1)[0][0]
        said = f"{len(reasons)} of the last {len(lately)} parts were not inspected, most often {reason.value}"
        return said + ADVICE.get(reason, "")

    @property
    def totals(self) -> dict[str, int]:
        return {
            "verdicts": self.seq,
            "passed": self.counts[Verdict.PASS],
            "rejected": self.counts[Verdict.REJECT],
            "not_inspected": self.counts[Verdict.NOT_INSPECTED],
        }

    def start(self, health: Health) -> None:
        self._health = health
        self._thread = spawn(f"inspect-{self.name}", self._run, health)

    def finish(self, limit_s: float) -> None:
        """Empty the ring and end; frames left after limit_s become NOT_INSPECTED/stopping."""
        if self._thread is None:
            return
        self._finish_by = time.monotonic() + limit_s
        self._thread.join(limit_s + 10)

    def _run(self) -> None:
        while True:
            finishing = self._finish_by is not None
            self.examiner.settle()
            frame = self._ring.take(timeout_s=self._patience_s())
            self._health.beat(f"inspect-{self.name}")
            if frame is not None:
                self._handle(frame)
            elif finishing:
                self.examiner.close()
                return

    def _patience_s(self) -> float:
        if self._finish_by is not None:
            return 0.01  # more than nothing: the ring's lock may be held for a moment
        return 0.005 if self.examiner.busy else 0.1

    def _handle(self, frame: Frame) -> None:
        outcome = self._outcome(frame)
        message = self._send(frame.header, outcome)
        rejected = self._copied(frame, outcome, message)
        if not self.examiner.holds(frame):
            self._ring.release(frame)
        if rejected is not None and self._outlets.images is not None:
            self._outlets.images.put(rejected)

    def _outcome(self, frame: Frame) -> Outcome:
        header = frame.header
        if header.status is not FrameStatus.OK:
            return not_inspected(REASON_OF_STATUS[header.status])
        if self._finish_by is not None and time.monotonic() > self._finish_by:
            return not_inspected(Reason.STOPPING)
        return self.examiner.examine(frame, self._deadline_ns(header))

    def _deadline_ns(self, header: FrameHeader) -> int:
        return (header.fetched_ns or time.monotonic_ns()) + round(self._camera.deadline_ms * 1e6)

    def _send(self, header: FrameHeader, outcome: Outcome) -> VerdictMessage:
        """Publish, count and journal; what can't be sent as it is goes out as NOT_INSPECTED."""
        journal = self._outlets.journal
        decided = message = self._message(header, outcome)
        begun = journal.begin(decided) if journal.before_publish else None
        if journal.before_publish and not self._may_go_out(decided, begun, self._deadline_ns(header)):
            message = self._message(header, not_inspected(Reason.NOT_JOURNALED))
        try:
            self._outlets.publisher.send(message)
        except Exception:
            log.exception("a verdict could not be published as it was", camera=self.name, seq=message.seq)
            message = self._message(header, not_inspected(Reason.INFERENCE_FAILED))
            self._outlets.publisher.send(message)
        self.seq = message.seq
        self.counts[message.verdict] += 1
        self._lately.append(message.reason if message.verdict is Verdict.NOT_INSPECTED else None)
        if begun is None:
            journal.put(message)
        elif message is not decided:
            journal.correct(message)
        self._tell_uninspected()
        return message

    def _tell_uninspected(self) -> None:
        """In the log, when it begins, and when it is over: when none of the last parts is one."""
        if not self._told and (why := self.uninspected):
            self._told = True
            log.warning("parts are not inspected", camera=self.name, why=why)
        elif self._told and not any(self._lately):
            self._told = False
            log.info("parts are inspected again", camera=self.name)

    def _may_go_out(self, message: VerdictMessage, begun: threading.Event | None, deadline_ns: int) -> bool:
        """No PASS and no REJECT before its row is on the disk; NOT_INSPECTED needs no proof."""
        on_disk = begun is not None and self._waited_for(begun, deadline_ns)
        return on_disk or message.verdict is Verdict.NOT_INSPECTED

    def _waited_for(self, on_disk: threading.Event, deadline_ns: int) -> bool:
        while (left_s := (deadline_ns - time.monotonic_ns()) / 1e9) > 0:
            self._health.beat(f"inspect-{self.name}")
            if on_disk.wait(min(left_s, SLICE_S)):
                return time.monotonic_ns() <= deadline_ns
        return False

    def _message(self, header: FrameHeader, outcome: Outcome) -> VerdictMessage:
        decided_ns = time.monotonic_ns()
        verdict, reason = outcome.verdict, outcome.reason
        if outcome.score is not None and decided_ns > self._deadline_ns(header):
            verdict, reason = Verdict.NOT_INSPECTED, Reason.LATE  # never a PASS after the deadline
        recipe = self.examiner.recipe
        fetched_ns = header.fetched_ns or decided_ns
        return VerdictMessage(
            station=self._station,
            camera=self.name,
            boot_id=self._boot_id,
            seq=self.seq + 1,
            part_id=header.part_id,
            trigger_id=header.trigger_id,
            frame_id=header.frame_id,
            encoder=header.encoder,
            verdict=verdict,
            reason=reason,
            score=outcome.score,
            limit=recipe.spec.limits.score,
            boxes=outcome.boxes if verdict is Verdict.REJECT else (),
            recipe=recipe.id,
            recipe_hash=recipe.hash,
            model_hash=recipe.spec.files["model.bin"],
            t_exposure_ns=header.exposed_ns,
            t_fetch_ns=fetched_ns,
            t_decided_ns=decided_ns,
            decided_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            inference_ms=outcome.inference_ms,
            latency_ms=(decided_ns - fetched_ns) / 1e6,
            deadline_ms=self._camera.deadline_ms,
            simulated=header.simulated,
        )

    def _copied(self, frame: Frame, outcome: Outcome, message: VerdictMessage) -> RejectedFrame | None:
        """The pixels of a reject, copied before the slot is given back."""
        wanted = message.verdict is Verdict.REJECT and self._outlets.images is not None
        if not wanted or frame.slot is None or outcome.anomaly_map is None:
            return None
        try:
            pixels, heat = self._ring.slot(frame.slot)[0].copy(), outcome.anomaly_map.copy()
        except MemoryError:
            log.exception("no memory for the picture of a reject", camera=self.name, seq=message.seq)
            return None
        return RejectedFrame(message, pixels, heat, self.examiner.recipe.spec)

    def describe(self) -> dict[str, Any]:
        """For heartbeats; last_seq may lag by a verdict, never lead."""
        recipe = self.examiner.recipe
        return {
            "last_seq": self._outlets.publisher.histories[self.name].last_seq,
            "recipe": recipe.id,
            "recipe_hash": recipe.hash,
            "hangs": self.examiner.hangs,
            **self.totals,
        }
