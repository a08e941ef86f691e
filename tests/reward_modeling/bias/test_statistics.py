import numpy as np
import pytest

from rlhf_recipes.reward_modeling.bias.statistics import (
    group_preferences,
    group_residuals,
    matched_accuracy,
    partial_correlation,
)
from rlhf_recipes.statistics import mean_with_interval, strata_of


def sample(rows=400, leaning=0.0, seed=0):
    """Ratings, a covariate that goes with them, and a score of both."""
    generator = np.random.default_rng(seed)
    ratings = generator.normal(size=rows)
    covariate = 0.6 * ratings + generator.normal(size=rows)
    scores = ratings + leaning * covariate + 0.5 * generator.normal(size=rows)
    return scores, covariate, ratings


# --- partial correlation ---------------------------------------------------------------------------------


def test_partial_correlation_worked_out_by_hand():
    # y takes the same two values for each x, so r_yx = 0; s = y + x. All variances are 1: r_sx = r_sy = 1 / sqrt(2),
    # and what y leaves of s is x itself.
    y, x = np.array([-1.0, -1.0, 1.0, 1.0]), np.array([-1.0, 1.0, -1.0, 1.0])
    found = partial_correlation(y + x, x, y)
    assert found["with_score"] == pytest.approx(0.5**0.5)
    assert found["with_rating"] == pytest.approx(0.0, abs=1e-12)
    assert found["partial"] == pytest.approx(1.0)
    assert found["slope"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("leaning", [0.0, 0.4, -0.7])
def test_partial_is_the_correlation_of_residuals(leaning):
    stats = pytest.importorskip("scipy.stats")
    scores, covariate, ratings = sample(leaning=leaning)

    def left(values):
        line = stats.linregress(ratings, values)
        return values - line.slope * ratings - line.intercept

    found = partial_correlation(scores, covariate, ratings)
    assert found["with_score"] == pytest.approx(stats.pearsonr(scores, covariate).statistic)
    assert found["with_rating"] == pytest.approx(stats.pearsonr(ratings, covariate).statistic)
    assert found["partial"] == pytest.approx(stats.pearsonr(left(scores), left(covariate)).statistic)
    slope = stats.linregress(left(covariate), left(scores)).slope * covariate.std() / scores.std()
    assert found["slope"] == pytest.approx(slope)


def test_the_interval_holds_0_where_there_is_no_bias_and_not_where_there_is():
    low, high = partial_correlation(*sample(leaning=0.0))["partial_ci95"]
    assert low < 0 < high
    low, _ = partial_correlation(*sample(leaning=0.4))["partial_ci95"]
    assert low > 0.3


def test_the_interval_is_about_as_wide_as_theory_says():
    # Of a normal sample the standard error of a partial correlation near 0 is 1 / sqrt(N - 4).
    low, high = partial_correlation(*sample(rows=1000))["partial_ci95"]
    assert high - low == pytest.approx(2 * 1.96 / 996**0.5, rel=0.1)


def test_noisy_ratings_look_like_bias_until_corrected():
    generator = np.random.default_rng(0)
    quality = generator.normal(size=20000)
    covariate = quality + generator.normal(size=20000)
    ratings = quality + generator.normal(size=20000)  # half of their variance is the raters'
    scores = quality + 0.5 * generator.normal(size=20000)  # knows quality and nothing of the covariate
    found = partial_correlation(scores, covariate, ratings, reliability=0.5)
    assert found["partial"] > 0.3
    assert found["partial_corrected"] == pytest.approx(0.0, abs=0.03)


def test_units_and_sizes_of_numbers_do_not_matter():
    scores, covariate, ratings = sample(50, 0.3)
    one = partial_correlation(scores, covariate, ratings)
    other = partial_correlation(1e6 + 1e-3 * scores, 1e9 * covariate, ratings / 7 - 40)
    assert other == {key: pytest.approx(value, abs=1e-6) for key, value in one.items()}


def test_units_are_drawn_together():
    scores, covariate, ratings = sample(40, 0.3)
    columns = [np.repeat(column, 10) for column in (scores, covariate, ratings)]
    together = partial_correlation(*columns, units=np.repeat(np.arange(40), 10).tolist())
    alone = partial_correlation(scores, covariate, ratings, units=list(range(40)))
    assert together == {key: pytest.approx(value, rel=0.05, abs=0.04) for key, value in alone.items()}


def test_what_cannot_be_said_is_none():
    scores, covariate, ratings = sample(30)
    constant = partial_correlation(scores, np.full(30, 0.1), ratings)
    assert set(constant.values()) == {None}
    assert partial_correlation(scores, covariate).keys() == {"with_score", "with_score_ci95"}
    told = partial_correlation(scores, 2 * ratings + 1, ratings)  # the rating tells all of it
    assert told["partial"] is None
    assert told["with_score"] is not None
    assert partial_correlation(scores, covariate, ratings, units=["one"] * 30)["partial_ci95"] is None


def test_bad_columns_are_refused():
    with pytest.raises(ValueError, match="2 scores, 3 covariate"):
        partial_correlation([1, 2], [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        partial_correlation([1, float("nan")], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="reliability is 1.5"):
        partial_correlation([1, 2], [1, 2], [1, 2], reliability=1.5)


# --- pairs -----------------------------------------------------------------------------------------------


def test_matched_accuracy_worked_out_by_hand():
    # Stratum of gap 1: two pairs with more (one right), one with less (right): weight 2 * 1 / 3.
    # Stratum of gap 2: one with more (right), three with less (one right, one tied): weight 1 * 3 / 4.
    gaps = [1, 1, 1, 2, 2, 2, 2]
    more = [1, 1, -1, 1, -1, -1, -1]
    right = [1, -1, 1, 1, 1, 0, -1]
    found = matched_accuracy(right, more, gaps, strata=2)
    a, b = 2 / 3, 3 / 4
    assert found["accuracy_more"] == pytest.approx((a * 0.5 + b * 1.0) / (a + b))
    assert found["accuracy_less"] == pytest.approx((a * 1.0 + b * 0.5) / (a + b))
    assert found["accuracy_difference"] == pytest.approx((a * -0.5 + b * 0.5) / (a + b))
    assert (found["pairs_more"], found["pairs_less"]) == (3, 4)


def test_matching_takes_out_how_hard_pairs_are():
    # The longer text is better in easy pairs, the shorter one in hard ones; the score looks at the rating alone.
    generator = np.random.default_rng(0)
    gaps = generator.uniform(0.1, 4, size=20000)
    more = np.where(generator.random(20000) < gaps / 4, 1.0, -1.0)
    differences = gaps + 2 * generator.normal(size=20000)
    raw = matched_accuracy(differences, more, None)
    matched = matched_accuracy(differences, more, gaps, strata=20)
    assert raw["accuracy_difference"] > 0.1
    low, high = matched["accuracy_difference_ci95"]
    assert low < 0.0 < high
    assert abs(matched["accuracy_difference"]) < 0.03


def test_pairs_of_one_sort_alone_cannot_be_matched():
    found = matched_accuracy([1, -1, 1], [2, 3, 0])
    assert found["accuracy_more"] is None
    assert (found["pairs_more"], found["pairs_less"]) == (2, 0)


def test_strata_are_of_equal_size_and_keep_equal_gaps_together():
    assert strata_of([4, 1, 3, 2], 2, 4).tolist() == [1, 0, 1, 0]
    assert strata_of([1, 1, 1, 2], 4, 4).tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="2 gaps for 3 pairs"):
        strata_of([1, 2], 2, 3)


# --- groups ----------------------------------------------------------------------------------------------


def test_group_residuals_worked_out_by_hand():
    found = group_residuals([1.0, 3.0, 0.0, -1.0, 1.0], ["a", "a", "b", "b", None])
    assert found["a"]["residual"] == pytest.approx(2.0)
    assert found["a"]["beyond_others"] == pytest.approx(2.0 - 0.0)  # of 0, -1 and 1
    assert found["b"]["residual"] == pytest.approx(-0.5)
    assert found["b"]["beyond_others"] == pytest.approx(-0.5 - 5 / 3)
    assert None not in found


def test_the_interval_of_a_group_is_that_of_the_difference_of_two_means():
    generator = np.random.default_rng(0)
    residuals, groups = generator.normal(size=1000), ["a"] * 200 + ["b"] * 800
    low, high = group_residuals(residuals, groups)["a"]["beyond_others_ci95"]
    assert low < 0 < high
    assert high - low == pytest.approx(2 * 1.96 * (1 / 200 + 1 / 800) ** 0.5, rel=0.1)


def test_one_group_alone_has_no_others():
    found = group_residuals([1.0, 2.0], ["a", "a"])["a"]
    assert found["residual"] == 1.5
    assert found["beyond_others"] is None


def test_group_preferences_worked_out_by_hand():
    #            a>b   a>b   b>a   a>a   b>b, by people
    better = ["a", "a", "b", "a", "b"]
    other = ["b", "b", "a", "a", "b"]
    found = group_preferences([1, 1, -1, -1, 0], better, other)
    # Of three pairs of both people prefer a in two, and the score in all.
    assert found["a"]["by_people"] == pytest.approx(2 / 3)
    assert found["a"]["by_score"] == pytest.approx(1.0)
    assert found["a"]["favoured"] == pytest.approx(1 / 3)
    assert found["b"]["favoured"] == pytest.approx(-1 / 3)
    assert (found["a"]["accuracy"], found["b"]["accuracy"]) == (0.0, 0.5)
    assert (found["a"]["pairs_within"], found["a"]["pairs_across"]) == (1, 3)


def test_a_group_that_meets_no_other_is_not_favoured():
    found = group_preferences([1.0, -1.0], ["a", "a"], ["a", "a"])["a"]
    assert found["favoured"] is None
    assert found["accuracy"] == 0.5


def test_mean_with_interval():
    mean, interval = mean_with_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert interval == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-3)  # Student's t, 2 degrees
    _, (low, high) = mean_with_interval([0.0] * 18 + [1.0, 9.0])
    assert high - 0.5 > 0.5 - low  # what is seldom large may be larger than was seen
    assert mean_with_interval([4.0]) == (4.0, None)
