"""The limit, from held-out scores of good parts only: what is estimated, and what is proven.

Two answers to "which score do at most a wanted share of good parts exceed?", of which the higher is taken:

- the conformal order statistic, which needs no assumption but about 1/rate parts to reach the rate
  (Vovk et al. 2005; of n parts the ceil((n + 1)(1 - rate))-th smallest score), and
- the upper bound of a generalised Pareto tail (peaks over threshold; Coles 2001, chapter 4), which carries
  on beyond the highest part seen (calibrate.tail).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from calibrate.tail import TAIL_CONFIDENCE, Doubles, Tail
from inspectord.errors import FitError
from inspectord.recipe import Limits

CONFIDENCE = 0.95  # of what is called proven
FAR_ABOVE = 1.3  # a limit so many times the highest good score lets defects pass that more parts would stop
STANDS_OUT = 0.01  # a highest part less likely than this, given the others, is worth a look
PROVABLE = (0.01, 0.001, 0.0001)


@dataclass(frozen=True, slots=True)
class Limit:
    """Reject above `score`. Rates are shares of good parts, 0 to 1."""

    score: float
    wanted_rate: float
    estimated_rate: float  # from the tail, or the order statistic where parts abound
    proven_rate: float  # upper bound at `confidence`, whatever the distribution (Clopper-Pearson)
    confidence: float
    good_parts: int
    nine_in_ten: float  # so many held-out parts score at most this
    above: int  # held-out parts with a score over the limit
    order_statistic: float  # the conformal one, or the highest score where the parts do not reach the rate
    tail_bound: float | None  # None where no tail was fitted
    tail_parts: int  # exceedances that the tail was fitted to
    method: str  # in plain words
    warnings: tuple[str, ...]
    stands_out: bool = False  # the highest part lies far from all others

    def headline(self) -> str:
        """What the limit means, in one sentence for the person at the line."""
        return headline(self.for_recipe(""))

    def sample_sizes(self) -> str:
        """How many good parts would prove which rate, in one sentence."""
        sizes = ", ".join(f"{parts_to_prove(rate):,} prove {in_words(rate)}" for rate in PROVABLE)
        return f"Good parts with none over the limit that it takes ({CONFIDENCE:.0%} confidence): {sizes}."

    def for_recipe(self, folds: str) -> Limits:
        """The same figures as the recipe stores them; folds says how the scores were held out."""
        return Limits(
            score=self.score,
            wanted_false_reject_rate=self.wanted_rate,
            estimated_false_reject_rate=self.estimated_rate,
            proven_false_reject_rate=self.proven_rate,
            confidence=self.confidence,
            good_parts=self.good_parts,
            folds=folds,
            method=self.method,
            nine_in_ten=self.nine_in_ten,
        )


def headline(limits: Limits) -> str:
    """The same sentence from what a recipe stores."""
    return (
        f"At this limit about {in_words(limits.estimated_false_reject_rate)} good parts is rejected "
        f"(estimated); {limits.good_parts:,} good parts prove at most "
        f"{in_words(limits.proven_false_reject_rate)} ({limits.confidence:.0%} confidence)."
    )


def find_limit(held_out: npt.ArrayLike, wanted_rate: float) -> Limit:
    """The limit for good parts' held-out scores of shape (n,), n at least 2.

    wanted_rate is the share of good parts that may be rejected, over 0 and under 1.
    Raises FitError for scores that are not finite and for too few of them.
    """
    scores = _sorted(held_out)
    order, reached = _order_statistic(scores, wanted_rate)
    tail, bound, score = _highest(scores, order, wanted_rate)
    above = int(np.count_nonzero(scores > score))
    estimated = tail.rate(score) if tail else (above + 1) / (len(scores) + 1)
    return Limit(
        score=score,
        wanted_rate=wanted_rate,
        estimated_rate=min(1.0, estimated),
        proven_rate=upper_bound(above, len(scores), CONFIDENCE),
        confidence=CONFIDENCE,
        good_parts=len(scores),
        nine_in_ten=_rounded_up(float(scores[nine_in_ten(len(scores)) - 1])),
        above=above,
        order_statistic=order,
        tail_bound=bound,
        tail_parts=tail.parts if tail else 0,
        method=_method(order, bound, reached, tail),
        warnings=_warnings(scores, wanted_rate, score),
        stands_out=_stands_out(scores, wanted_rate),
    )


def parse_rate(text: str) -> float:
    """'1/1000', '0.1%' or '0.001' as a share. Raises ValueError saying what was expected."""
    try:
        if "/" in text:
            top, bottom = text.split("/")
            rate = float(top) / float(bottom)
        else:
            rate = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        rate = math.nan
    if not 0 < rate < 1:
        raise ValueError(f"{text!r} is no rate between 0 and 1; give it as in 1/1000, 0.1% or 0.001")
    return rate


def in_words(rate: float) -> str:
    """A share as people say it: '1 in 1,600', two figures; never smaller than it is by rounding."""
    if rate < 1e-6:
        return "fewer than 1 in 1,000,000"
    if rate > 0.1:
        return f"{math.ceil(rate * 100 - 1e-9)} in 100"
    parts = 1 / rate * (1 + 1e-9)
    step = 10 ** max(0, math.floor(math.log10(parts)) - 1)
    return f"1 in {math.floor(parts / step) * step:,}"


def upper_bound(events: int, parts: int, confidence: float) -> float:
    """The highest share that `events` among `parts` do not rule out, one-sided (Clopper and Pearson 1934)."""
    return 1.0 if events >= parts else float(stats.beta.ppf(confidence, events + 1, parts - events))


def parts_to_prove(rate: float, confidence: float = CONFIDENCE) -> int:
    """Good parts, none over the limit, that prove at most `rate` false rejects: 299 for 1 %."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def nine_in_ten(parts: int) -> int:
    """How many of the parts, lowest scores first, are nine in ten."""
    return math.ceil(0.9 * parts)


def chance_above(above: int, others: int, parts: int) -> float:
    """The chance that `above` or more of `others` good parts score over what nine in ten of `parts` score at
    most, where all are different parts of the same kind: then every order of all scores is as likely as any
    other (a beta-binomial distribution, whatever that of the scores).
    """
    place = nine_in_ten(parts)
    return float(stats.betabinom.sf(above - 1, others, parts + 1 - place, place))


def usually_above(others: int, parts: int) -> float:
    """How many of the others do so, on average."""
    return others * (parts + 1 - nine_in_ten(parts)) / (parts + 1)


def _sorted(held_out: npt.ArrayLike) -> Doubles:
    scores = np.sort(np.asarray(held_out, np.float64).ravel())
    wrong = int(np.count_nonzero(~np.isfinite(scores)))
    if wrong:
        raise FitError(f"{wrong} of {len(scores)} held-out scores are not finite; fit with --precision f32")
    if len(scores) < 2:
        raise FitError(f"{len(scores)} held-out scores give no limit; fit from more good parts")
    return scores


def _order_statistic(scores: Doubles, rate: float) -> tuple[float, bool]:
    """The conformal order statistic, and whether there are parts enough to reach the rate."""
    place = math.ceil((len(scores) + 1) * (1 - rate))
    return float(scores[min(place, len(scores)) - 1]), place <= len(scores)


def _highest(scores: Doubles, order: float, rate: float) -> tuple[Tail | None, float | None, float]:
    """The tail and its bound, where there is one, and the limit: the higher of bound and order statistic."""
    tail = Tail.fit(scores, rate)
    bound = tail.bound(rate) if tail else None
    return tail, bound, _rounded_up(order if bound is None else max(order, bound))


def _rounded_up(score: float) -> float:
    """The next float32 at or above: the graph's scores are float32, and an equal one must pass."""
    single = np.float32(score)
    return float(single if float(single) >= score else np.nextafter(single, np.float32(np.inf)))


def _method(order: float, bound: float | None, reached: bool, tail: Tail | None) -> str:
    first = (
        "order statistic of the held-out scores"
        if reached
        else "highest held-out score (too few for the rate)"
    )
    if tail is None or bound is None:
        return f"{first}, {order:.6g}; no tail was fitted"
    return (
        f"the higher of: {first}, {order:.6g}; {TAIL_CONFIDENCE:.0%} upper bound of a generalised Pareto "
        f"tail over the {tail.parts} highest scores, {bound:.6g}"
    )


def _with_another_rate(scores: Doubles, rate: float, limit: float) -> str:
    """What the limit would be for the strictest rate that so many parts could prove; else for the loosest."""
    can = [each for each in PROVABLE if parts_to_prove(each) <= len(scores)]
    other = min(can, default=PROVABLE[0])
    if other <= rate:
        return ""
    *_, found = _highest(scores, _order_statistic(scores, other)[0], other)
    if not found < limit:
        return ""
    return f" With --max-false-rejects 1/{1 / other:.0f} it would be {found:.4g} instead of {limit:.4g}."


def _warnings(scores: Doubles, rate: float, limit: float) -> tuple[str, ...]:
    found = []
    if scores[0] == scores[-1]:
        found.append("All good parts score the same: the frames or the region hold nothing to compare.")
    needed = parts_to_prove(rate)
    if len(scores) < needed:
        found.append(
            f"{len(scores):,} good parts can't prove {in_words(rate)}; {needed:,} could. Until then it is an "
            "estimate: add good parts when you have them."
        )
    if 0 < FAR_ABOVE * scores[-1] < limit:
        found.append(
            f"The limit is {limit / scores[-1]:.1f} times the highest good part's score, because "
            f"{len(scores):,} parts say little about rare ones. More good parts lower it; fewer defects pass."
            + _with_another_rate(scores, rate, limit)
        )
    return tuple(found)


def _stands_out(scores: Doubles, rate: float) -> bool:
    rest = Tail.fit(scores[:-1], rate) if len(scores) > 4 else None
    if rest is None or scores[-1] <= rest.start:
        return False
    return len(scores) * rest.rate(float(scores[-1])) < STANDS_OUT
