"""Which kind to take, in plain words: by good frames and made-up defects, never by defective frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from calibrate.compare_result import Comparison, figure, is_found, of_strength, share, struck_figures
from calibrate.compare_tasks import Measured
from calibrate.evaluation import Rate
from calibrate.limits import CONFIDENCE, in_words, upper_bound

CHANCE = 0.05  # a difference that chance alone makes more often than this decides nothing
AS_FAST = 1.25  # times the fastest's median: no reason to find less
FEW_FOUND = 0.5  # of the clear ones
CLEARLY_MORE = 0.02  # AUROC


@dataclass(frozen=True)
class Advice:
    """The kind to take, None where none will do; and why, what would change it, on what it rests."""

    kind: str | None
    why: str
    changes: tuple[str, ...]
    evidence: str

    def lines(self) -> list[str]:
        """For the terminal."""
        return [self.why, *(f"  - {text}" for text in self.changes), self.evidence]


def advise(comparison: Comparison) -> Advice:
    """Of the kinds that no other surely beats in made-up defects found, the fastest."""
    able = comparison.able()
    out = {kind: why for kind in able if (why := _unfit(able[kind], comparison.deadline_ms))}
    ready = {kind: measured for kind, measured in able.items() if kind not in out}
    left_out, evidence = _left_out(out, comparison), _evidence(comparison)
    if not ready:
        return Advice(None, "No kind can be recommended.", tuple(left_out), evidence)
    near = [kind for kind in ready if not any(_beats(other, ready[kind]) for other in ready.values())]
    fastest = min(ready[kind].timed.p50_ms for kind in near)
    quick = [kind for kind in near if ready[kind].timed.p50_ms <= AS_FAST * fastest]
    chosen = max(quick, key=lambda kind: _found(ready[kind]))
    took = ready[chosen]
    changes = [*_other_needs(chosen, ready), _weak(took), *_by_given(chosen, ready, comparison)]
    if len(ready) == 1:
        others, left_out = _alone(left_out), []
    else:
        others = _against_others(chosen, near, ready)
    return Advice(chosen, f"{_take(chosen, took)} {others} {_needed(took)}", (*changes, *left_out), evidence)


def _left_out(out: dict[str, str], comparison: Comparison) -> list[str]:
    """The kinds that can't be recommended, each with its reason."""
    unfit = [f"{kind} is left out: {why}." for kind, why in out.items()]
    failed = comparison.failed().items()
    return unfit + [
        f"{kind} could not be compared ({why}); it may be better or worse." for kind, why in failed
    ]


def _unfit(measured: Measured, deadline_ms: float | None) -> str:
    """Why a kind must not be taken here; empty where it may."""
    rejects, limits = measured.samples.false_rejects, measured.spec.limits
    if measured.blindness:
        return measured.blindness
    clear, _ = struck_figures(measured)
    if clear.found.events < _fewest(clear.found):
        return (
            f"it finds {share(clear.found)} clear made-up defects, too few to rely on: "
            f"{_fewest(clear.found)} are needed; look closer with --tile or --roi, or teach more good "
            "frames, and compare again"
        )
    if rejects.low > limits.proven_false_reject_rate:
        return (
            f"it rejected {share(rejects)} held-out good frames, more than its limit should "
            f"({in_words(limits.proven_false_reject_rate)})"
        )
    if deadline_ms is not None and measured.timed.p99_ms > deadline_ms:
        return f"one frame in a hundred takes {measured.timed.p99_ms:.1f} ms, over {deadline_ms:g} ms"
    return ""


def _fewest(clear: Rate) -> int:
    """Made-up defects that a kind must find to be recommended."""
    return math.ceil(FEW_FOUND * clear.parts)


def _found(measured: Measured) -> int:
    clear, faint = struck_figures(measured)
    return clear.found.events + faint.found.events


def _beats(one: Measured, other: Measured) -> bool:
    """Whether one finds more, and more than chance explains: a sign test over the places struck."""
    wins = losses = 0
    for ours, theirs in zip(_by_place(one), _by_place(other), strict=True):
        wins, losses = wins + (ours > theirs), losses + (ours < theirs)
    sure = wins > losses and float(stats.binomtest(losses, wins + losses).pvalue) < CHANCE
    return sure and _found(one) > _found(other)  # so that no kinds beat each other in a circle


def _by_place(measured: Measured) -> list[int]:
    """How many of the two strengths are found at each place."""
    both = (of_strength(measured.samples, strength) for strength in ("clear", "faint"))
    return [is_found(clear) + is_found(faint) for clear, faint in zip(*both, strict=True)]


def _in_figures(measured: Measured) -> str:
    clear, faint = struck_figures(measured)
    return (
        f"finds {share(clear.found)} clear and {share(faint.found)} faint made-up defects in "
        f"{measured.timed.p50_ms:.1f} ms a frame"
    )


def _take(kind: str, took: Measured) -> str:
    return (
        f"Take {kind}: it {_in_figures(took)} (99 of 100 frames within {took.timed.p99_ms:.1f} ms), with "
        f"{took.timed.memory_mb:.0f} MB of memory."
    )


def _needed(took: Measured) -> str:
    clear = struck_figures(took)[0].found
    return f"A kind must find {_fewest(clear)} of the {clear.parts} clear made-up defects to be recommended."


def _alone(left_out: list[str]) -> str:
    """Why there was no choice."""
    if not left_out:
        return "No other kind was compared."
    return " ".join(["No other kind can be recommended.", *left_out])


def _against_others(chosen: str, near: list[str], ready: dict[str, Measured]) -> str:
    took, best = ready[chosen], max(near, key=lambda kind: _found(ready[kind]))
    if chosen != best:
        faster = ready[best].timed.p50_ms / took.timed.p50_ms
        return (
            f"{best} {_in_figures(ready[best])}: not surely more, and {chosen} is {faster:.1f} times as fast."
        )
    beaten = [kind for kind in ready if kind != chosen and _beats(took, ready[kind])]
    times = {kind: ready[kind].timed.p50_ms / took.timed.p50_ms for kind in near if kind != chosen}
    equal = [kind for kind in times if times[kind] <= AS_FAST]
    beaten_by_others = [kind for kind in ready if kind not in (chosen, *beaten, *times)]
    parts = [f"surely more than {' and '.join(beaten)}"] if beaten else []
    parts += [f"not surely more than {' and '.join(equal)}, but no slower to speak of"] if equal else []
    parts += [
        f"not surely more than {kind}, which takes {times[kind]:.1f} times as long"
        for kind in times
        if times[kind] > AS_FAST
    ]
    parts += [f"not surely more than {kind}, which another kind beats" for kind in beaten_by_others]
    return f"That is {'; '.join(parts)}."


def _other_needs(chosen: str, ready: dict[str, Measured]) -> list[str]:
    """The kind for a shorter cycle, and those that more good frames might bring forward."""
    took, others = ready[chosen], {kind: one for kind, one in ready.items() if kind != chosen}
    texts = []
    faster = [kind for kind, one in others.items() if one.timed.p50_ms * AS_FAST < took.timed.p50_ms]
    for kind in sorted(faster, key=lambda kind: -_found(ready[kind]))[:1]:
        texts.append(f"If {took.timed.p99_ms:.1f} ms a frame is too long: {kind} {_in_figures(ready[kind])}.")
    for kind, one in others.items():
        mine, theirs = (struck_figures(each)[1].auroc or 0 for each in (took, one))
        if theirs > mine + CLEARLY_MORE:
            texts.append(
                f"{kind} ranks faint defects above good frames more often (AUROC {figure(theirs)}, {chosen} "
                f"{figure(mine)}): with more good frames its limit may come down, so compare again then."
            )
    return texts


def _weak(took: Measured) -> str:
    rejects = took.samples.false_rejects
    bound = upper_bound(rejects.events, rejects.parts, CONFIDENCE)
    return (
        f"It rejected {share(rejects)} held-out good frames; they prove no more than at most "
        f"{in_words(bound)} ({CONFIDENCE:.0%} confidence). More good frames would say more."
    )


def _by_given(chosen: str, ready: dict[str, Measured], comparison: Comparison) -> list[str]:
    """What the defective frames say; they have no vote, for few of them are never all that may come."""
    if not comparison.defective:
        return [
            "Real defects may differ from made-up ones: where there are some, give them with --defective."
        ]
    failed = [
        f"{kind} could not be measured on the defective frames: {one.given_failed}."
        for kind, one in ready.items()
        if one.given_failed
    ]
    given = {kind: one.given for kind, one in ready.items() if one.given is not None}
    figures = {kind: one.image_auroc for kind, one in given.items() if one.image_auroc is not None}
    if not figures:
        return ["The defective frames could not be scored, so they say nothing here.", *failed]
    top = max(figures, key=lambda kind: figures[kind])
    said = ", ".join(f"{kind} {figure(value)}" for kind, value in figures.items())
    if len(figures) == 1:
        end = ""
    elif figures[top] <= figures.get(chosen, 0):
        end = f" They say the same: {chosen} stands highest."
    else:
        end = f" There {top} stands highest, not {chosen}."
    untold = [f"{text}." for text in given[chosen].untold()] if chosen in given else []
    return [f"The defective frames had no say in this. AUROC on them: {said}.{end}", *untold, *failed]


def _evidence(comparison: Comparison) -> str:
    return (
        f"This rests on {len(comparison.held_out)} good frames that no kind was fitted to (of "
        f"{len(comparison.held_out) + comparison.taught}, seed {comparison.seed}) and {comparison.strikes} "
        f"made-up defects on them, each drawn clearly and faintly; times are of this box, on "
        f"{comparison.threads} of its cores."
    )
