"""Confidence and coverage: curves from scores to probabilities, intervals, and a threshold with a guarantee."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_recipes.reward_modeling.uses.thresholds import (
    Sigmoid,
    accuracy_bound,
    coverage_curve,
    draw_coverage,
    pick_threshold,
    thinned,
)

# ---- from scores to probabilities


def test_a_sigmoid_by_hand():
    curve = Sigmoid(2.0, -1.0)
    assert curve([0.5, 1.0, -1e6]).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 0.0])
    assert curve.boundary == 0.5


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_what_is_no_sigmoid_is_refused(scale, offset):
    with pytest.raises(ValueError, match="gives no probabilities"):
        Sigmoid(scale, offset)


def test_two_scores_are_fitted_exactly():
    """At -1 one of four is good, at 1 three of four: Platt's targets keep these shares symmetrical about 1/2."""
    x, y = [-1] * 4 + [1] * 4, [0, 0, 0, 1, 0, 1, 1, 1]
    curve = Sigmoid.fit(x, y)
    # labels become 5/6 and 1/6: the mean target at 1 is (3 * 5/6 + 1/6) / 4 = 2/3, and its logit is log 2
    assert curve.scale == pytest.approx(math.log(2), rel=1e-3)
    assert curve.offset == pytest.approx(0.0, abs=1e-4)


def test_pairs_have_a_temperature_and_no_offset():
    """Of 100 pairs with the difference 2 the first is better in 73: 1 / (1 + e^-1) of them is 73.1."""
    curve = Sigmoid.fit([2.0] * 100, [1] * 73 + [0] * 27, pairs=True)
    # Platt's targets: (73 * 101/102 + 27 * 1/102) / 100
    share = (73 * 101 / 102 + 27 / 102) / 100
    assert 2 * curve.scale == pytest.approx(math.log(share / (1 - share)), rel=1e-4)
    assert curve.offset == 0.0


def test_turning_pairs_round_changes_nothing():
    generator = np.random.default_rng(0)
    x = generator.normal(size=60)
    y = (generator.random(60) < 1 / (1 + np.exp(-x))).astype(float)
    turned = generator.random(60) < 0.5
    one = Sigmoid.fit(x, y, pairs=True)
    other = Sigmoid.fit(np.where(turned, -x, x), np.where(turned, 1 - y, y), pairs=True)
    assert other.scale == pytest.approx(one.scale, rel=1e-4)


def test_what_made_the_labels_is_found_again():
    generator = np.random.default_rng(1)
    x = generator.normal(3, 2, size=20_000)
    y = generator.random(20_000) < 1 / (1 + np.exp(-(1.5 * x - 4)))
    curve = Sigmoid.fit(x, y)
    assert (curve.scale, curve.offset) == (pytest.approx(1.5, abs=0.1), pytest.approx(-4, abs=0.2))


def test_labels_without_a_mistake_do_not_make_it_infinitely_sure():
    assert 0.5 < Sigmoid.fit([1.0, 2.0], [1, 1], pairs=True)(2.0) < 0.95
    assert math.isfinite(Sigmoid.fit([-1.0, 1.0], [0, 1]).scale)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([1.0, 2.0], [1, 1], "one class"),
        ([1.0, 2.0], [1, 0], "do not rise"),
        ([1.0], [1, 0], "There are 1 scores and 2 labels"),
        ([1.0, 2.0], [0, 4], "from 0 to 4"),
    ],
)
def test_what_cannot_be_fitted_is_named(x, y, said):
    with pytest.raises(ValueError, match=said):
        Sigmoid.fit(x, y)


# ---- bounds


def test_the_bound_is_where_what_was_seen_has_the_chance_delta():
    assert accuracy_bound(20, 20, 0.05) == pytest.approx(0.05 ** (1 / 20))
    bound = accuracy_bound(45, 50, 0.1)
    assert stats.binom.sf(44, 50, bound) == pytest.approx(0.1)
    assert accuracy_bound(0, 5, 0.05) == 0.0


# ---- coverage and accuracy

CONFIDENCE = [0.9, 0.6, 0.8, 0.8, 0.7]
RIGHT = [1, 0, 1, 0, 1]


def test_a_curve_by_hand():
    curve = coverage_curve(CONFIDENCE, RIGHT)
    assert [(point.threshold, point.rows, point.right) for point in curve] == [
        (0.9, 1, 1),
        (0.8, 3, 2),  # rows of one confidence go together
        (0.7, 4, 3),
        (0.6, 5, 3),
    ]
    assert [point.coverage for point in curve] == [0.2, 0.6, 0.8, 1.0]
    assert coverage_curve(CONFIDENCE, RIGHT, total=10)[-1].coverage == 0.5


def test_more_rows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="total is 3"):
        coverage_curve(CONFIDENCE, RIGHT, total=3)


def test_without_a_guarantee_the_sample_decides():
    choice = pick_threshold(CONFIDENCE, RIGHT, 0.75, guarantee=0)
    assert (choice.threshold, choice.point.rows, choice.bound) == (0.7, 4, None)
    assert pick_threshold(CONFIDENCE, RIGHT, 1.0, guarantee=0).threshold == 0.9
    with pytest.raises(ValueError, match="The most is 0.000"):
        pick_threshold([0.9, 0.8], [0, 0], 0.5, guarantee=0)


def graded(rows, seed=0):
    """Confidence that is what it says: right with that probability."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.5, 1, rows)
    return confidence, generator.random(rows) < confidence


def test_a_guarantee_is_the_bound_at_a_threshold_of_the_grid():
    confidence, right = graded(2000)
    choice = pick_threshold(confidence, right, 0.9, guarantee=0.95)
    reached = confidence >= choice.threshold
    assert choice.threshold in confidence  # its own 5%, 10%, ... where no grid is given
    assert (choice.point.rows, choice.point.right) == (reached.sum(), right[reached].sum())
    assert choice.point.rows % 100 == 0
    assert stats.binom.sf(choice.point.right - 1, choice.point.rows, choice.bound) == pytest.approx(0.05)
    assert choice.bound >= 0.9


def test_a_guarantee_holds_as_often_as_it_says():
    """Of rows with confidence c and more (1 + c) / 2 are right; a promise is broken where that is below what was."""
    broken = given = 0
    for seed in range(200):
        confidence, right = graded(1000, seed)
        try:
            choice = pick_threshold(confidence, right, 0.9, guarantee=0.9, grid=graded(1000, 10_000 + seed)[0])
        except ValueError:
            continue
        given += 1
        broken += (1 + choice.threshold) / 2 < 0.9
    assert given > 100
    assert broken <= stats.binom.ppf(0.999, 200, 0.1)


def test_what_the_sample_shows_is_broken_more_often_than_a_guarantee():
    chosen = [pick_threshold(*graded(1000, seed), 0.9, guarantee=0).threshold for seed in range(50)]
    assert sum((1 + threshold) / 2 < 0.9 for threshold in chosen) > 10


def test_too_few_rows_guarantee_nothing_and_it_says_so():
    with pytest.raises(ValueError, match="50 labelled rows cannot guarantee an accuracy of 0.95"):
        pick_threshold(np.linspace(0.5, 1, 50), np.ones(50), 0.95)
    with pytest.raises(ValueError, match="surest ones 0 are right"):
        pick_threshold(np.linspace(0.5, 1, 500), np.zeros(500), 0.9)


@pytest.mark.parametrize(("wanted", "guarantee"), [(0.0, 0.9), (1.1, 0.9), (0.9, 1.0), (0.9, -0.1)])
def test_what_cannot_be_wanted_is_refused(wanted, guarantee):
    with pytest.raises(ValueError, match="give an accuracy above 0"):
        pick_threshold(CONFIDENCE, RIGHT, wanted, guarantee)


def test_figures_for_json():
    figures = pick_threshold(CONFIDENCE, RIGHT, 0.75, guarantee=0).figures()
    assert figures["threshold"] == 0.7
    assert figures["validation_accuracy"] == 0.75
    low, high = figures["validation_accuracy_ci95"]
    assert 0.1941 - 0.01 < low < 0.25  # by Clopper and Pearson 3 of 4 allow 0.1941 to 0.9937
    assert 0.95 < high < 0.9937
    assert figures["validation_groups"] == 4
    assert figures["guaranteed_accuracy"] is None


def test_a_long_curve_is_thinned_with_both_ends():
    curve = coverage_curve(*graded(5000))
    points = thinned(curve)
    assert len(points) == 200
    assert (points[0], points[-1]) == (curve[0], curve[-1])


def test_a_picture(tmp_path):
    curve = coverage_curve(CONFIDENCE, RIGHT)
    choice = pick_threshold(CONFIDENCE, RIGHT, 0.75, guarantee=0)
    file = draw_coverage({"validation": curve, "test": curve}, tmp_path / "coverage.png", choice)
    assert file.read_bytes().startswith(b"\x89PNG")
