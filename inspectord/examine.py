"""One inspector under a deadline: every frame gets its outcome in time, whatever the device does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from inspectord.frame import Frame
from inspectord.health import Health, backoff_s, spawn
from inspectord.inspect import Floats, Inspector, left_behind
from inspectord.judge import judge, regions, sure_score
from inspectord.messages import Box, Reason, Verdict
from inspectord.recipe import Recipe

HANG_S = 2.0  # an inference that runs on so long after its cancellation is given up, with its compiled model
MOST_HANGS = 3  # then only a fresh process helps
MOST_FAILURES = 3  # inferences in a row that raise; then the model is compiled afresh
SLICE_S = 0.25  # waits are cut, so that the watchdog sees a live thread
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    reason: Reason
    score: float | None = None
    boxes: tuple[Box, ...] = ()
    inference_ms: float | None = None
    anomaly_map: Floats | None = None  # of a REJECT; valid until the next examine


def not_inspected(reason: Reason) -> Outcome:
    return Outcome(Verdict.NOT_INSPECTED, reason)


@dataclass(eq=False, slots=True)
class Offer:
    """A model that shall take over between two frames."""

    inspector: Inspector
    taken: bool = False
    answered: threading.Event = field(default_factory=threading.Event)


class Examiner:
    """Owned by one thread; only swap() is called from others.

    release(frame) gives a slot back to the ring; remake(recipe) compiles a model afresh, after a hang or
    where the device was lost, again and again with a back-off until it proves itself.
    """

    def __init__(
        self,
        inspector: Inspector,
        release: Callable[[Frame], None],
        remake: Callable[[Recipe], Inspector],
        health: Health,
    ) -> None:
        self.recipe = inspector.recipe
        self.hangs = 0
        self._release, self._remake, self._health = release, remake, health
        self._running: Frame | None = None  # the device reads its slot
        self._overdue_ns: int | None = None  # ... and its verdict is already out, since then
        self._started_ns = 0
        self._failures = 0  # in a row
        self._remakes = 0  # since an inference went well
        self._remake_error = ""
        self._remaker: threading.Thread | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the next two
        self._inspector: Inspector | None = inspector
        self._offer: Offer | None = None
        self._retired: list[Inspector] = []

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def trouble(self) -> str | None:
        """Why no frame is inspected at present, or None."""
        if self._inspector is not None:
            return None
        return f"the model is being compiled afresh{self._remake_error and ': ' + self._remake_error}"

    @property
    def device(self) -> str | None:
        """Where the model runs, or None while there is none."""
        inspector = self._inspector
        return inspector.device if inspector is not None else None

    def holds(self, frame: Frame) -> bool:
        """True while the device still reads this frame; its slot is then released by settle()."""
        return self._running is frame

    def examine(self, frame: Frame, deadline_ns: int) -> Outcome:
        """The outcome of a frame with pixels, at the deadline at the latest. Raises nothing."""
        try:
            return self._examine(frame, deadline_ns)
        except Exception:
            self._on_failure("inference failed")
            return not_inspected(Reason.INFERENCE_FAILED)

    def settle(self) -> None:
        """Between two frames: free what an overdue inference held, give up one that hangs, swap models."""
        try:
            if self._running is not None:
                self._finished(0.0)
        except Exception:
            self._on_failure("an overdue inference failed")
        if self._running is None:
            self._take_offer()

    def swap(self, inspector: Inspector, timeout_s: float = 30.0) -> bool:
        """From another thread: run this one from the next frame on. False where that does not come about.

        The old one is taken apart here: that takes milliseconds which the examining thread must not spend.
        """
        offer = Offer(inspector)
        with self._lock:
            if self._closed.is_set():
                return False
            self._offer = offer
        offer.answered.wait(timeout_s)
        with self._lock:
            if self._offer is offer:  # too late now: what was refused must not run after all
                self._offer = None
        self._retired.clear()
        return offer.taken

    def close(self) -> None:
        """No more frames: nobody need wait for a swap, and what the device still reads is left to it."""
        with self._lock:
            self._closed.set()
            if self._offer is not None:
                self._offer.answered.set()
        compiling = self._remaker is not None and self._remaker.is_alive()
        if self._running is not None or compiling:  # neither must meet the end of the interpreter
            left_behind.append(self._inspector)

    def _take_offer(self) -> None:
        """The device is idle: change the model where another one is offered."""
        with self._lock:
            offer, self._offer = self._offer, None
            if offer is None:
                return
            if self._inspector is not None:
                self._retired.append(self._inspector)
            self._inspector, self.recipe = offer.inspector, offer.inspector.recipe
            offer.taken = True
        offer.answered.set()

    def _examine(self, frame: Frame, deadline_ns: int) -> Outcome:
        if not self._idle_by(deadline_ns) or time.monotonic_ns() >= deadline_ns:
            return not_inspected(Reason.LATE)
        self._take_offer()  # here too: a line that is too fast for its model leaves no other moment
        inspector = self._inspector
        if inspector is None or frame.slot is None:  # a hung model is being replaced
            return not_inspected(Reason.INFERENCE_FAILED)
        self._started_ns = time.monotonic_ns()
        inspector.start(frame.slot)
        self._running = frame
        if not self._idle_by(deadline_ns):
            self._overdue_ns = time.monotonic_ns()
            inspector.cancel()  # so that the next frame need not wait for an answer that nobody uses
            return not_inspected(Reason.LATE)
        return self._judged(inspector, (time.monotonic_ns() - self._started_ns) / 1e6)

    def _judged(self, inspector: Inspector, inference_ms: float) -> Outcome:
        result, spec = inspector.check(inspector.result()), inspector.recipe.spec
        self._failures = self._remakes = 0
        score = sure_score(result)
        verdict, reason = judge(score, spec.limits.score)
        if verdict is not Verdict.REJECT:
            return Outcome(verdict, reason, score if verdict is Verdict.PASS else None, (), inference_ms)
        boxes = tuple(regions(result.anomaly_map, spec))
        return Outcome(verdict, reason, score, boxes, inference_ms, result.anomaly_map)

    def _idle_by(self, deadline_ns: int) -> bool:
        while self._running is not None:
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9
            self._health.beat(threading.current_thread().name)
            if self._finished(left_s):
                break
            if left_s <= 0:
                return False
        return True

    def _finished(self, patience_s: float) -> bool:
        """The running inference is over, well or not; raises what the device raised."""
        assert self._inspector is not None
        overdue_ns = self._overdue_ns
        try:
            over = self._inspector.wait(min(max(patience_s, 0.0), SLICE_S))
        except Exception:
            self._clear()
            if overdue_ns is None:
                raise
            over = True  # cancelled, as asked
        if over:
            self._clear()
            if overdue_ns is not None:
                self._inspector.renew()
        elif overdue_ns is not None and time.monotonic_ns() - overdue_ns > HANG_S * 1e9:
            self._give_up_hung()
        return over or self._running is None

    def _clear(self) -> None:
        frame, self._running = self._running, None
        if frame is not None and self._overdue_ns is not None:
            self._release(frame)
        self._overdue_ns = None

    def _on_failure(self, what: str) -> None:
        """Inside an except: log it, and mend what raised: the infer request, then the compiled model."""
        log.exception(what, recipe=self.recipe.id)
        self._failures += 1
        if self._inspector is None or self._running is not None:
            return
        try:
            self._inspector.renew()
        except Exception:
            self._failures = MOST_FAILURES
        if self._failures >= MOST_FAILURES:
            log.error("inference fails again and again; the model is compiled afresh", recipe=self.recipe.id)
            self._compile_afresh()

    def _give_up_hung(self) -> None:
        """Leave the hung model behind, never destroyed (that would wait for it), and compile it afresh."""
        self.hangs += 1
        log.error("inference hangs; the model is compiled afresh", recipe=self.recipe.id, hangs=self.hangs)
        left_behind.append(self._inspector)
        if self.hangs > MOST_HANGS:
            self._health.fail(f"inference of {self.recipe.id} hung {self.hangs} times")
        self._clear()
        self._compile_afresh()

    def _compile_afresh(self) -> None:
        assert self._inspector is not None
        with self._lock:
            self._retired.append(self._inspector)
            self._inspector = None
        self._failures = 0
        self._remake_error = ""
        self._remaker = spawn(f"remake-{self.recipe.id}", self._replace, self._health, watched=False)

    def _replace(self) -> None:
        """In a thread of its own, until a model has proven itself or a reload brought another one."""
        self._retired.clear()  # here, as a device that is lost may take its time over it
        while not self._closed.wait(backoff_s(self._remakes + 1)) and self._inspector is None:
            self._remakes += 1
            try:
                fresh = self._remake(self.recipe)
            except Exception as error:
                if str(error) != self._remake_error:
                    log.error("the model can't be compiled afresh", recipe=self.recipe.id, error=str(error))
                self._remake_error = str(error)
                continue
            with self._lock:
                outdated = self._inspector is not None or fresh.recipe.hash != self.recipe.hash
                if not outdated and self._offer is None:  # else a reload came first
                    self._offer = Offer(fresh)
                if outdated or (self._offer is not None and self._offer.inspector is fresh):
                    return
