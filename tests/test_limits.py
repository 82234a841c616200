"""The limit keeps what it promises: simulated on distributions whose true tails are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from calibrate.limits import (
    chance_above,
    find_limit,
    in_words,
    nine_in_ten,
    parse_rate,
    parts_to_prove,
    upper_bound,
    usually_above,
)
from inspectord.errors import FitError

LAWS = {
    "normal": stats.norm(10, 1),
    "chi": stats.chi(8),
    "exponential": stats.expon(),
    "log-normal": stats.lognorm(0.5),
    "Student t": stats.t(5, 20, 2),
}


def true_rates(law, parts, wanted, repeats, seed=0):
    """The share of good parts that each of `repeats` limits really rejects."""
    rng = np.random.default_rng(seed)
    samples = law.rvs(size=(repeats, parts), random_state=rng)
    return np.array([law.sf(find_limit(sample, wanted).score) for sample in samples])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("parts", "wanted"), [(10, 0.01), (40, 0.001), (200, 0.001), (1000, 0.001)])
def test_the_rate_averaged_over_sets_of_good_parts_is_at_most_the_wanted(law, parts, wanted):
    """150 sets each; the mean's own standard error decides what counts as above (two of them)."""
    rates = true_rates(LAWS[law], parts, wanted, 150)
    assert rates.mean() <= wanted + 2 * rates.std() / math.sqrt(len(rates))


@pytest.mark.parametrize("law", LAWS)
def test_with_parts_enough_no_extrapolation_is_left(law):
    sample = LAWS[law].rvs(size=100_000, random_state=np.random.default_rng(1))
    limit = find_limit(sample, 0.01)
    assert limit.score == pytest.approx(limit.order_statistic, rel=1e-6)
    assert LAWS[law].sf(limit.score) == pytest.approx(0.01, rel=0.1)


def test_the_limit_is_not_absurdly_high_either():
    """A limit above every score rejects nothing: the bound must stay near the true quantile."""
    law = LAWS["chi"]
    limits = [
        find_limit(law.rvs(size=200, random_state=np.random.default_rng(seed)), 0.001).score
        for seed in range(40)
    ]
    median, true = law.median(), law.isf(0.001)
    assert np.median(limits) < median + 1.6 * (true - median)


def test_the_limit_is_never_below_the_order_statistic_and_no_held_out_part_beyond_the_rate_fails():
    sample = LAWS["exponential"].rvs(size=3000, random_state=np.random.default_rng(2))
    limit = find_limit(sample, 0.001)
    assert limit.score >= limit.order_statistic
    assert limit.above <= 3


@pytest.mark.parametrize(("parts", "place"), [(2, 2), (9, 9), (10, 9), (30, 27), (470, 423)])
def test_nine_in_ten_held_out_parts_score_at_most_what_the_recipe_keeps(parts, place):
    sample = np.random.default_rng(parts).permutation(parts) + 0.1
    found = find_limit(sample, 0.01).for_recipe("").nine_in_ten
    assert found is not None
    assert nine_in_ten(parts) == place == np.count_nonzero(sample <= found)
    assert found == pytest.approx(np.sort(sample)[place - 1], rel=1e-6)


@pytest.mark.parametrize(("parts", "others"), [(2, 1), (5, 4), (11, 3)])
def test_the_chance_that_others_score_more_counts_the_orders_in_which_they_do(parts, others):
    """All places of `others` among parts + others are as likely: how many of them lie above the kept one?"""
    whole = parts + others
    counts = np.zeros(others + 1)
    for chosen in itertools.combinations(range(whole), others):
        taught = [place for place in range(whole) if place not in chosen]
        kept = taught[nine_in_ten(parts) - 1]
        counts[sum(place > kept for place in chosen)] += 1
    for above in range(others + 1):
        expected = counts[above:].sum() / counts.sum()
        assert chance_above(above, others, parts) == pytest.approx(expected, rel=1e-9), above
    mean = (counts * np.arange(others + 1)).sum() / counts.sum()
    assert usually_above(others, parts) == pytest.approx(mean, rel=1e-9)


def test_proven_is_what_clopper_and_pearson_allow():
    limit = find_limit(LAWS["chi"].rvs(size=299, random_state=np.random.default_rng(3)), 0.001)
    assert limit.above == 0
    assert limit.proven_rate == pytest.approx(1 - 0.05 ** (1 / 299))
    assert limit.proven_rate <= 0.01
    assert upper_bound(3, 3, 0.95) == 1.0


@pytest.mark.parametrize(("rate", "parts"), [(0.01, 299), (0.001, 2995), (0.0001, 29956)])
def test_sample_sizes_are_the_known_ones(rate, parts):
    assert parts_to_prove(rate) == parts
    assert upper_bound(0, parts, 0.95) <= rate < upper_bound(0, parts - 1, 0.95)


def test_too_few_parts_are_said():
    limit = find_limit(np.random.default_rng(0).normal(10, 1, 50), 0.001)
    assert any("50 good parts can't prove 1 in 1,000" in warning for warning in limit.warnings)
    assert "estimated" in limit.headline()
    assert "50 good parts prove at most" in limit.headline()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("parts", [10, 24, 60, 200])
def test_what_is_estimated_is_never_more_than_what_was_wanted(law, parts):
    sample = LAWS[law].rvs(size=parts, random_state=np.random.default_rng(4))
    assert find_limit(sample, 0.001).estimated_rate <= 0.001


def test_a_limit_far_above_the_highest_part_says_why():
    few = find_limit(np.random.default_rng(0).lognormal(1, 0.6, 12), 0.001)
    assert any("times the highest good part" in warning for warning in few.warnings)
    many = find_limit(np.random.default_rng(0).lognormal(1, 0.6, 5000), 0.001)
    assert not any("times the highest good part" in warning for warning in many.warnings)


def test_a_limit_far_above_tells_the_one_of_a_rate_that_so_many_parts_can_prove():
    sample = LAWS["log-normal"].rvs(size=400, random_state=np.random.default_rng(3)) ** 3
    (said,) = [text for text in find_limit(sample, 0.0001).warnings if "times the highest" in text]
    told = find_limit(sample, 0.01).score
    assert f"With --max-false-rejects 1/100 it would be {told:.4g} instead of" in said
    (said,) = [text for text in find_limit(sample[:40], 0.0001).warnings if "times the highest" in text]
    assert f"1/100 it would be {find_limit(sample[:40], 0.01).score:.4g}" in said, "nothing can be proven"
    heavy = np.random.default_rng(2).pareto(1.5, 30)
    (said,) = [text for text in find_limit(heavy, 0.01).warnings if "times the highest" in text]
    assert "--max-false-rejects" not in said, "no looser rate is offered than the one asked for"


def test_a_part_far_out_is_pointed_at_and_others_are_not():
    scores = np.random.default_rng(0).normal(10, 1, 200)
    assert not find_limit(scores, 0.01).stands_out
    scores[7] = 60
    assert find_limit(scores, 0.01).stands_out


def test_the_same_scores_in_any_order_give_the_same_limit():
    scores = np.random.default_rng(0).normal(10, 1, 80)
    assert find_limit(scores, 0.001) == find_limit(scores[::-1], 0.001)


@pytest.mark.parametrize("score", [0.1, 3.3, 7.7])
def test_a_good_part_exactly_at_the_limit_passes_in_float32(score):
    limit = find_limit(np.full(30, score), 0.001)
    assert limit.score >= score
    assert limit.score == float(np.float32(limit.score))
    assert limit.above == 0


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan, 2.0], [1.0, math.inf]])
def test_scores_that_say_nothing_are_refused(scores):
    with pytest.raises(FitError):
        find_limit(scores, 0.01)


def test_ties_and_a_single_outlier_do_not_break_it():
    for scores in (np.repeat([1.0, 2.0], 50), np.r_[np.ones(99), 5.0], np.linspace(0, 1, 11)):
        limit = find_limit(scores, 0.001)
        assert math.isfinite(limit.score)
        assert limit.score >= scores.max()


@pytest.mark.parametrize(("text", "rate"), [("1/1000", 0.001), ("0.1%", 0.001), ("0.02", 0.02)])
def test_rates_are_read_as_people_write_them(text, rate):
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["0", "1", "-1/5", "1/0", "often", "1/2/3", "nan"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="1/1000"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("rate", "words"), [(0.001, "1 in 1,000"), (1 / 1634, "1 in 1,600"), (0.26, "26 in 100"), (1e-9, "fewer")]
)
def test_rates_in_words_never_sound_better_than_they_are(rate, words):
    assert in_words(rate).startswith(words)
