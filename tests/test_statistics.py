"""How often an interval holds the truth: worked examples, and simulations with a truth that is known."""

import numpy as np
import pytest
from scipy import stats

from rlhf_recipes.data.pairs import compare_all
from rlhf_recipes.reward_modeling.evaluation.figures import calibration, rating_errors
from rlhf_recipes.reward_modeling.evaluation.metrics import pair_metrics
from rlhf_recipes.reward_modeling.evaluation.subsets import subset_accuracy
from rlhf_recipes.reward_modeling.uses.thresholds import Point, coverage_curve
from rlhf_recipes.statistics import (
    Units,
    combined,
    linked,
    pair_units,
    ratio_interval,
    shared,
    spread_of,
    without_each,
)

# --- worked examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (5, 10), (58, 60), (59, 60), (60, 60), (700, 1000)])
def test_a_share_of_single_rows_lies_between_two_that_are_known(right, rows):
    """Clopper and Pearson's interval holds too often, that of Jeffreys too seldom; ours is between the two."""
    exact = stats.binomtest(right, rows).proportion_ci(method="exact")
    jeffreys = stats.beta.ppf([0.025, 0.975], right + 0.5, rows - right + 0.5)
    low, high = ratio_interval([1.0] * right + [0.0] * (rows - right), [1.0] * rows)
    assert exact.low - 0.002 <= low <= max(jeffreys[0], 0.0)
    assert min(jeffreys[1], 1.0) <= high <= exact.high + 0.002


def test_the_mean_of_what_is_not_skewed_has_students_interval():
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    units = Units.of(5)
    mean, influences = units.mean(values)
    expected = stats.t.interval(0.95, 4, loc=0.0, scale=stats.sem(values))
    assert units.spread(influences).interval(mean) == pytest.approx(expected)


def test_rows_that_are_copies_say_no_more_than_one():
    right = [1.0] * 30 + [0.0] * 10
    once = ratio_interval(right, [1.0] * 40)
    ten_times = ratio_interval(np.repeat(right, 10), np.ones(400))
    together = pair_metrics(["a"] * 400, ["b"] * 400, np.repeat(right, 10).tolist(), [0.5] * 400,
                            np.repeat(np.arange(40), 10).tolist())["pairwise_accuracy_ci95"]  # fmt: skip
    assert np.ptp(ten_times) < 0.4 * np.ptp(once)
    assert together == pytest.approx(once, abs=0.02)


def test_a_pair_of_texts_that_are_in_no_other_is_a_row():
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    alone, paired = Units.of(6), Units.of(6, list("abcdef"), list("ghijkl"))
    influences = alone.mean(values)[1]
    one, other = paired.spread(influences), alone.spread(influences)
    assert (one.variance, one.skew) == pytest.approx((other.variance, other.skew))
    assert (one.units, one.equal, one.alone) == (6, 6.0, True)


def test_a_figure_without_ends_and_its_mirror_image():
    units = Units.of(6)
    mean, influences = units.mean(np.array([0.0, 0.0, 1.0, 1.0, 2.0, 9.0]))
    low, high = units.spread(influences).interval(mean)
    assert high - mean > mean - low  # the tail is above
    assert units.spread(-influences).interval(-mean) == pytest.approx([-high, -low])


def test_a_single_unit_says_nothing():
    units = Units.of(3, ["a", "a", "a"])
    assert units.spread(np.array([0.5, -0.25, -0.25])).bounded(0.5) is None
    assert units.spread(np.array([0.5, -0.25, -0.25])).interval(0.5) is None
    assert ratio_interval([], []) is None


def test_what_is_missed_without_each_row_is_its_influence():
    values = np.array([1.0, 2.0, 3.0, 10.0])
    found = without_each(lambda sums: {"mean": sums[:, 0] / sums[:, 1]}, np.stack([values, np.ones(4)], axis=1))
    assert found["mean"][0] == 4.0
    assert found["mean"][1] == pytest.approx((values - 4.0) / 4)


def test_parts_without_a_unit_in_common_are_added():
    parts = []
    for scale in (1.0, 3.0):
        units = Units.of(4)
        parts.append((0.5, units.spread(units.mean(scale * np.array([0.0, 1.0, 2.0, 3.0]))[1])))
    assert combined(parts).variance == pytest.approx(0.25 * (1 + 9) * (5 / 3) / 4)


def test_rows_that_are_linked():
    assert linked(["p", "p", "q", None]) == [0, 0, 1, 2]
    first, second = linked(["a", "b", "c", "d"], ["b", "x", "y", "d"]), linked([None, "t"], ["t", None])
    assert first[0] == first[1]
    assert len(set(first)) == 3
    assert second[0] == second[1]


def test_pairs_hang_together_by_prompts_or_else_by_texts():
    assert shared(["p", "q"]) is None
    assert shared(["", "", ""]) is None  # rows without a prompt
    assert pair_units(["p", "p"], ["a", "b"], ["c", "d"]) == (["p", "p"], None)
    assert pair_units(["p", "q"], ["a", "a"], ["b", "b"]) == (None, None)  # other prompts, other texts
    assert pair_units(["", ""], ["a", "a"], ["b", "c"])[0] is not None


# --- simulations -----------------------------------------------------------------------------------------


def shares(runs, units, size, truth, together, generator):
    """Right rows of each unit `(runs, units)`, whose chance has the correlation `together` within a unit."""
    if together == 1:
        return size * (generator.random((runs, units)) < truth)
    chance = np.full((runs, units), truth)
    if together:
        odds = 1 / together - 1
        chance = generator.beta(truth * odds, (1 - truth) * odds, size=(runs, units))
    return generator.binomial(size, chance)


def holds(interval, truth):
    return interval[0] <= truth <= interval[1]


LONG = (pytest.mark.slow, pytest.mark.timeout(900))  # simulations
FEW = [(60, 1, 0.98, 0.0), (60, 1, 0.5, 0.0), (60, 1, 0.02, 0.0), (12, 1, 0.9, 0.0), (30, 10, 0.5, 0.3),
       (30, 10, 0.95, 0.3), (30, 4, 0.98, 1.0), (100, 10, 0.98, 0.3)]  # fmt: skip
MANY = [(units, size, truth, together) for units in (8, 15, 30, 60, 200) for size, together in
        ((1, 0.0), (4, 0.0), (4, 0.3), (10, 0.1), (10, 0.3), (10, 1.0))
        for truth in (0.005, 0.02, 0.1, 0.5, 0.8, 0.95, 0.98, 0.995)]  # fmt: skip


@pytest.mark.parametrize(("runs", "cases"), [(1500, FEW), pytest.param(4000, MANY, marks=LONG)])
def test_shares_are_held(runs, cases):
    """At least 93 times of 100; in the middle, of 60 units and more, at most 97 (near the ends more is all right)."""
    generator = np.random.default_rng(0)
    for units, size, truth, together in cases:
        rows = shares(runs, units, size, truth, together, generator)
        held = np.mean([holds(ratio_interval(row, np.full(units, size)), truth) for row in rows])
        few = 0.005 if runs > 2000 and units >= 30 else 0.01  # left to chance, and to units that are too few
        assert held > 0.93 - few, (units, size, truth, together, held)
        if 0.2 < truth < 0.8 and units >= 60:
            assert held < 0.97 + few, (units, size, truth, together, held)


@pytest.mark.parametrize(("right", "tied", "wrong"), [(0.98, 0.0, 0.02), (0.7, 0.2, 0.1), (0.2, 0.6, 0.2)])
def test_the_interval_of_pairs_is_held(right, tied, wrong):
    """A percentile bootstrap holds 98% of 60 pairs 70 times of 100. Ties count half, and vary less."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        differences = generator.choice([1.0, 0.0, -1.0], size=60, p=[right, tied, wrong])
        found = pair_metrics(["a"] * 60, ["b"] * 60, differences.tolist(), [0.0] * 60)
        held += holds(found["pairwise_accuracy_ci95"], right + tied / 2)
    assert 0.92 < held / 400 < 0.985


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
def test_means_are_held(draw):
    generator = np.random.default_rng(0)
    truth = {"normal": 0.0, "exponential": 1.0, "uniform": 0.5}[draw]
    for rows in (10, 30, 100):
        units = Units.of(rows)
        samples = getattr(generator, draw)(size=(1500, rows))
        found = [units.spread(influences).interval(mean) for mean, influences in map(units.mean, samples)]
        assert 0.92 < np.mean([holds(interval, truth) for interval in found]) < 0.98


def test_means_of_rows_that_hang_together_are_held():
    generator = np.random.default_rng(0)
    units = Units.of(120, np.repeat(np.arange(30), 4).tolist())
    held = 0
    for _ in range(1500):
        values = np.repeat(generator.exponential(size=30), 4) + generator.normal(size=120)
        mean, influences = units.mean(values)
        held += holds(units.spread(influences).interval(mean), 1.0)
    assert 0.92 < held / 1500 < 0.98


@pytest.mark.parametrize("noise", [3.0, 1.0, 0.3, 0.1])
def test_shares_of_all_pairs_are_held(noise):
    """Of normal numbers and normal noise, `1/2 + atan(1 / noise) / pi` of all pairs are in order."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(800):
        ratings = generator.normal(size=50)
        held += holds(compare_all(ratings + noise * generator.normal(size=50), ratings, 0.0).interval(),
                      0.5 + np.arctan(1 / noise) / np.pi)  # fmt: skip
    assert held / 800 > 0.92
    assert held / 800 < (0.98 if noise >= 1 else 1.001)


def test_shares_of_all_pairs_of_texts_of_few_prompts_are_held():
    generator = np.random.default_rng(0)
    prompts, held = np.repeat(np.arange(30), 5), {"prompts": 0, "texts": 0}
    for _ in range(400):
        ratings = generator.normal(size=30)[prompts] + 0.3 * generator.normal(size=150)
        scores = ratings + generator.normal(size=30)[prompts] + 0.3 * generator.normal(size=150)
        found = compare_all(scores, ratings, 0.0)
        # Two texts: the difference of the ratings has the variance 2 of it, that of the noise the same.
        truth = 0.5 + np.arctan(1.0) / np.pi
        held["prompts"] += holds(found.interval(prompts.tolist()), truth)
        held["texts"] += holds(found.interval(), truth)
    assert held["prompts"] / 400 > 0.92
    assert held["texts"] / 400 < 0.8


@pytest.mark.parametrize("truth", [0.0, 0.5, 0.9])
def test_correlations_are_held(truth):
    generator = np.random.default_rng(0)
    known = {"pearson": truth, "spearman": 6 / np.pi * np.arcsin(truth / 2), "kendall": 2 / np.pi * np.arcsin(truth)}
    held = dict.fromkeys(known, 0)
    for _ in range(60):
        x, noise = generator.normal(size=(2, 30))
        found = rating_errors(truth * x + np.sqrt(1 - truth**2) * noise, x)
        for name in known:
            held[name] += holds(found[f"{name}_ci95"], known[name])
    assert min(held.values()) / 60 > 0.86


def test_distances_are_held():
    generator = np.random.default_rng(0)
    held = dict.fromkeys(("mae", "rmse", "r2"), 0)
    for _ in range(60):
        ratings, noise = generator.normal(size=(2, 40))
        found = rating_errors(ratings + noise, ratings)
        for name, truth in (("mae", np.sqrt(2 / np.pi)), ("rmse", 1.0), ("r2", 0.0)):
            held[name] += holds(found[f"{name}_ci95"], truth)
    assert min(held.values()) / 60 > 0.86  # of so few runs; more of them below


def test_calibration_is_held_where_it_is_perfect_and_where_it_is_not():
    generator = np.random.default_rng(0)
    held = {"perfect": 0, "off": 0, "brier": 0}
    for _ in range(400):
        p = generator.uniform(0.0, 0.8, size=300)
        y = (generator.random(300) < p).astype(float)
        found = calibration(p, y)
        held["perfect"] += found["ece_ci95"][0] == 0.0
        held["off"] += holds(calibration(p + 0.2, y)["ece_ci95"], 0.2)
        held["brier"] += holds(found["brier_ci95"], 0.4 - 0.64 / 3)  # the mean of p (1 - p)
    assert held["perfect"] / 400 > 0.93
    assert held["off"] / 400 > 0.9
    assert 0.92 < held["brier"] / 400 < 0.98


def test_weighted_sections_are_held():
    """Of three subsets with the weights 1, 2 and 5, near 1, 0.9 and 0.5."""
    generator = np.random.default_rng(0)
    names = ["a"] * 40 + ["b"] * 60 + ["c"] * 30
    chance = np.repeat([0.98, 0.9, 0.5], [40, 60, 30])
    held = 0
    for _ in range(400):
        right = (generator.random(130) < chance).astype(float)
        found = subset_accuracy(right, np.full(130, 0.5), names, sections={"all": {"a": 1, "b": 2, "c": 5}})
        held += holds(found["score_ci95"], (0.98 + 1.8 + 2.5) / 8)
    assert 0.92 < held / 400 < 0.985


# --- a promise -------------------------------------------------------------------------------------------

SMALL = [(100, 4, 0.0), (100, 4, 0.3), (200, 10, 0.3), (200, 10, 0.6), (60, 10, 1.0), (200, 1, 0.0)]
LARGE = [(units, size, together) for units in (60, 100, 200, 500) for size in (4, 10)
         for together in (0.0, 0.1, 0.3, 0.6, 1.0)]  # fmt: skip


def bound_of(right, size):
    """The bound of one point: all rows are as sure, `right` of each group's `size` are right."""
    groups = Units.of(len(right), sizes=np.full(len(right), size))
    accuracy, influences = groups.mean(right)
    return Point(1.0, 1.0, size * len(right), int(right.sum()), accuracy, groups.spread(influences)).bound(0.05)


@pytest.mark.parametrize(("runs", "cases"), [(200, SMALL), pytest.param(2000, LARGE, marks=LONG)])
def test_a_promise_of_95_percent_is_broken_in_at_most_5_runs_of_100(runs, cases):
    """The truth is a little below what is promised, the rows of a prompt are right or wrong together."""
    generator = np.random.default_rng(0)
    for units, size, together in cases:
        drawn = shares(runs, units, size, 0.9499, together, generator)
        broken = sum(bound_of(right, size) >= 0.95 for right in drawn)
        assert broken <= stats.binom.ppf(0.999, runs, 0.05), (units, size, together, broken / runs)


def test_rows_that_are_no_strangers_were_a_promise_too_much():
    """By rows, 200 prompts of 10 answers each would break it far more often; with enough prompts it is still given."""
    generator = np.random.default_rng(0)
    by_rows = [stats.beta.ppf(0.05, right.sum(), 2001 - right.sum()) >= 0.95
               for right in shares(300, 200, 10, 0.9499, 0.3, generator)]  # fmt: skip
    assert np.mean(by_rows) > 0.1
    assert np.mean([bound_of(right, 10) >= 0.95 for right in shares(100, 300, 10, 0.98, 0.1, generator)]) > 0.9


def test_a_curve_knows_the_spread_of_each_of_its_points():
    generator = np.random.default_rng(0)
    confidence, right, groups = generator.random(90), generator.integers(0, 2, 90), generator.integers(0, 30, 90)
    for point in coverage_curve(confidence, right, groups=groups.tolist())[10::20]:
        reached = confidence >= point.threshold
        units = Units.of(point.rows, groups[reached].tolist())
        accuracy, influences = units.mean(right[reached])
        spread = units.spread(influences)
        assert point.accuracy == pytest.approx(accuracy)
        assert (point.spread.variance, point.spread.equal) == pytest.approx((spread.variance, spread.equal))
        assert (point.spread.units, point.spread.alone) == (spread.units, spread.alone)


def test_groups_of_one_row_have_the_exact_bound():
    point = coverage_curve(np.ones(80), [1.0] * 77 + [0.0] * 3)[-1]
    assert stats.binom.sf(76, 80, point.bound(0.05)) == pytest.approx(0.05)
    alone = coverage_curve(np.ones(80), [1.0] * 77 + [0.0] * 3, groups=list(range(80)))[-1]
    assert alone.bound(0.05) == point.bound(0.05)


def test_all_right_is_worth_as_many_rows_as_there_are_groups():
    point = coverage_curve(np.ones(240), np.ones(240), groups=np.repeat(np.arange(60), 4).tolist())[-1]
    assert point.bound(0.05) == pytest.approx(0.05 ** (1 / 60))


def test_one_size_is_no_unit():
    spread = spread_of(np.zeros(3), np.array([4.0, 4.0, 0.0]), 8.0)
    assert (spread.units, spread.equal, spread.alone) == (2, 2.0, False)
