import itertools
import json
import math

import numpy as np
import pytest

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, all_pairs_interval
from rlhf_recipes.reward_modeling.evaluation.figures import (
    accuracy_by_margin,
    calibration,
    pair_probabilities,
    rating_errors,
    win_rate_curve,
)
from rlhf_recipes.reward_modeling.evaluation.subsets import subset_accuracy

pytest.importorskip("scipy")

NAN, INF = float("nan"), float("inf")


def sample(rows=300, seed=0):
    generator = np.random.default_rng(seed)
    ratings = generator.integers(-8, 9, size=rows) / 2
    return (ratings + generator.normal(size=rows) * 2).round(1), ratings


# --- order -----------------------------------------------------------------------------------------------


def test_accuracy_by_margin_worked_out_by_hand():
    ratings = [0.0, 0.5, 1.5, 4.0]
    scores = [1.0, 0.0, 1.0, 2.0]
    # Gaps: 0.5 (wrong), 1.5 (tied), 4 (right), 1 (right), 3.5 (right), 2.5 (right).
    buckets = accuracy_by_margin(scores, ratings)
    assert [(bucket["from"], bucket["to"]) for bucket in buckets] == [(0.5, 1.0), (1.0, 2.0), (2.0, None)]
    assert [bucket["pairs"] for bucket in buckets] == [1, 2, 3]
    assert [bucket["accuracy"] for bucket in buckets] == [0.0, 0.75, 1.0]
    assert buckets[2]["accuracy_ci95"][1] == 1.0


def test_one_bucket_is_the_accuracy_over_all_pairs_and_its_interval():
    scores, ratings = sample(80)
    bucket = accuracy_by_margin(scores, ratings, [0.5])[0]
    assert (bucket["accuracy"], bucket["pairs"]) == all_pairs_accuracy(scores, ratings, 0.5)
    assert bucket["accuracy_ci95"] == all_pairs_interval(scores, ratings, 0.5)


def test_only_texts_of_one_prompt_are_compared():
    ratings, scores = [0.0, 1.0, 5.0, 9.0, 2.0], [0.0, 1.0, 1.0, 0.0, 7.0]
    prompts = ["a", "a", "b", "b", "c"]  # "c" has nothing to compare
    bucket = accuracy_by_margin(scores, ratings, [0.5], prompts)[0]
    assert (bucket["accuracy"], bucket["pairs"]) == (0.5, 2)
    low, high = bucket["accuracy_ci95"]  # of two prompts, one right and one wrong
    assert (low < 0.02, high > 0.98) == (True, True)


def test_prompts_may_be_messages():
    prompts = [[{"role": "user", "content": text}] for text in "aabbc"]
    ratings, scores = [0.0, 1.0, 5.0, 9.0, 2.0], [0.0, 1.0, 1.0, 0.0, 7.0]
    assert accuracy_by_margin(scores, ratings, prompts=prompts) == accuracy_by_margin(scores, ratings, prompts="aabbc")
    assert win_rate_curve(scores, ratings, prompts) == win_rate_curve(scores, ratings, "aabbc")
    for measure in (subset_accuracy, calibration):
        names = {"subsets": ["all"] * 5, "prompts": prompts} if measure is subset_accuracy else {"units": prompts}
        assert measure([0.1, 0.2, 0.9, 0.8, 0.3], [0.0, 1.0, 0.5, 0.2, 1.0], **names)


def test_the_interval_over_prompts_is_wider_than_that_over_texts():
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(30), 20)
    ratings = generator.normal(size=600)
    good = generator.random(30) < 0.5  # the score knows some prompts and not the others
    scores = np.where(good[prompts], ratings, generator.normal(size=600))
    low, high = accuracy_by_margin(scores, ratings, [0.1], prompts.tolist())[0]["accuracy_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / math.sqrt(30), rel=0.25)


def test_buckets_without_pairs_and_single_texts():
    buckets = accuracy_by_margin([1.0, 2.0], [0.0, 0.6])
    assert [bucket["pairs"] for bucket in buckets] == [1, 0, 0]
    assert (buckets[1]["accuracy"], buckets[1]["accuracy_ci95"]) == (None, None)
    assert accuracy_by_margin([1.0], [0.0], [0.5])[0]["accuracy"] is None
    assert accuracy_by_margin([1.0, 2.0], [3.0, 3.0], [0.0])[0]["pairs"] == 0  # ties are never asked
    alone = accuracy_by_margin([1.0, 2.0], [0.0, 1.0], [0.5], ["a", "a"])[0]
    assert (alone["accuracy"], alone["accuracy_ci95"]) == (1.0, None)


@pytest.mark.parametrize("edges", [[], [1.0, 1.0], [2.0, 1.0], [-1.0]])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(ValueError, match="edges is"):
        accuracy_by_margin([1.0, 2.0], [1.0, 2.0], edges)


BAD_COLUMNS = [
    ([], [], "no rows"),
    ([1.0, NAN], [1.0, 2.0], "row 1 the first"),
    ([1.0, 2.0], [None, 2.0], "row 0 the first"),
    ([INF, 2.0], [1.0, 2.0], "not finite"),
    (["1.0", "2.0"], [1.0, 2.0], "row 0 is the text '1.0'"),
    ([1.0, 2.0, 3.0], [1.0, 2.0], "There are 3 .* and 2 .*; give one of each"),
    ([[1.0], [2.0]], [1.0, 2.0], "have the shape"),
    ([[1.0], 2.0], [1.0, 2.0], "one number for each row"),
]


@pytest.mark.parametrize(
    "measure", [accuracy_by_margin, rating_errors, win_rate_curve, calibration, pair_probabilities]
)
@pytest.mark.parametrize(("first", "second", "message"), BAD_COLUMNS)
def test_columns_that_are_no_numbers_are_refused(measure, first, second, message):
    with pytest.raises(ValueError, match=message):
        measure(first, second)


@pytest.mark.parametrize("measure", [accuracy_by_margin, rating_errors, win_rate_curve])
def test_prompts_must_be_one_for_each_row(measure):
    with pytest.raises(ValueError, match="There are 1 prompts for 2 rows"):
        measure([1.0, 2.0], [1.0, 2.0], prompts=["a"])


# --- distance --------------------------------------------------------------------------------------------


def test_rating_errors_worked_out_by_hand():
    metrics = rating_errors([1.0, 2.0, 2.0, 5.0], [1.0, 3.0, 1.0, 4.0])
    # Differences 0, -1, 1, 1; ratings lie -1.25, 0.75, -1.25, 1.75 from their mean: squares 6.75.
    assert metrics["mae"] == 0.75
    assert metrics["rmse"] == pytest.approx(math.sqrt(3 / 4))
    assert metrics["r2"] == pytest.approx(1 - 3 / 6.75)
    # Scores lie -1.5, -0.5, -0.5, 2.5 from theirs: squares 9, products 1.875 - 0.375 + 0.625 + 4.375 = 6.5.
    assert metrics["pearson"] == pytest.approx(6.5 / math.sqrt(9 * 6.75))
    # Ranks 1, 2.5, 2.5, 4 and 1.5, 3, 1.5, 4: products 1.5 - 0.0 + 0.0 + 2.25 = 3.75, squares 4.5 each.
    assert metrics["spearman"] == pytest.approx(3.75 / 4.5)
    # Of six pairs one is tied in either; of the other four all go the same way.
    assert metrics["kendall"] == pytest.approx(4 / math.sqrt(5 * 5))
    assert metrics["texts"] == 4


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    scores, ratings = sample()
    metrics = rating_errors(scores, ratings)
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(scores, ratings).statistic)
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert metrics["kendall"] == pytest.approx(stats.kendalltau(scores, ratings).statistic)


def test_intervals_of_errors_are_as_wide_as_theory_says():
    generator = np.random.default_rng(5)
    ratings = generator.normal(size=400)
    scores = 0.6 * ratings + 0.8 * generator.normal(size=400)
    metrics = rating_errors(scores, ratings)
    low, high = np.arctanh(metrics["pearson_ci95"])
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(397), rel=0.2)  # Fisher's z
    for key in ("mae", "rmse", "r2", "pearson", "spearman", "kendall"):
        assert metrics[f"{key}_ci95"][0] < metrics[key] < metrics[f"{key}_ci95"][1]


def test_prompts_are_drawn_whole_for_errors():
    # One prompt is exact and one is wrong by 1: of two prompts, Student's t has one degree of freedom, 12.706.
    metrics = rating_errors([1.0, 2.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0], prompts=["a", "a", "b", "b"])
    assert (metrics["mae"], metrics["mae_ci95"]) == (0.5, pytest.approx([0.0, 0.5 + 12.7062 * 0.5], abs=1e-3))


def test_what_does_not_vary_has_no_correlation():
    metrics = rating_errors([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert (metrics["r2"], metrics["pearson"], metrics["kendall"]) == (0.0, None, None)
    assert metrics["pearson_ci95"] is None
    metrics = rating_errors([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert (metrics["r2"], metrics["r2_ci95"], metrics["spearman"]) == (None, None, None)
    assert metrics["mae"] == pytest.approx(2 / 3)
    one = rating_errors([1.0], [3.0])
    assert (one["mae"], one["mae_ci95"], one["pearson"]) == (2.0, None, None)


def test_tiny_numbers_still_correlate():
    assert rating_errors([1e-200, 2e-200, 3e-200], [1.0, 2.0, 3.0])["pearson"] == pytest.approx(1.0)


# --- probability -----------------------------------------------------------------------------------------


def test_pair_probabilities_of_bradley_and_terry():
    assert pair_probabilities([math.log(3), 0.0, -1000.0], [0.0, 0.0, 1000.0]) == pytest.approx([0.75, 0.5, 0.0])


def test_calibration_worked_out_by_hand():
    metrics = calibration([0.1, 0.3, 0.6, 0.8], [0, 1, 1, 1], bins=2)
    # Bins (0.1, 0.3) with mean 0.2 and outcome 0.5, (0.6, 0.8) with 0.7 and 1.
    assert metrics["ece"] == pytest.approx((0.3 + 0.3) / 2)
    assert metrics["brier"] == pytest.approx((0.01 + 0.49 + 0.16 + 0.04) / 4)
    assert [(part["from"], part["to"], part["rows"]) for part in metrics["bins"]] == [(0.1, 0.6, 2), (0.6, 0.8, 2)]
    assert [part["probability"] for part in metrics["bins"]] == pytest.approx([0.2, 0.7])
    assert [part["outcome"] for part in metrics["bins"]] == [0.5, 1.0]


def test_pairs_are_turned_to_the_text_that_the_model_prefers():
    # 0.8 right; 0.3 for the chosen text is 0.7 for the other, wrong; 0.5 says nothing.
    metrics = calibration([0.8, 0.3, 0.5], [1, 1, 1], bins=3, pairs=True)
    assert [part["probability"] for part in metrics["bins"]] == pytest.approx([0.5, 0.7, 0.8])
    assert [part["outcome"] for part in metrics["bins"]] == [0.5, 0.0, 1.0]
    assert metrics["ece"] == pytest.approx((0.0 + 0.7 + 0.2) / 3)
    assert metrics["brier"] == pytest.approx((0.04 + 0.49 + 0.25) / 3)
    turned = calibration([0.2, 0.7, 0.5], [0, 0, 0], bins=3, pairs=True)
    assert turned["ece"] == pytest.approx(metrics["ece"])
    assert turned["brier"] == pytest.approx(metrics["brier"])


def test_brier_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(6)
    p = generator.random(500)
    y = (generator.random(500) < p).astype(int)
    found = calibration(p, y)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(y, p))
    assert found["ece"] < 0.08  # what is drawn with these probabilities is calibrated
    assert calibration(p**3, y)["ece"] > 0.2
    assert [part["rows"] for part in found["bins"]] == [50] * 10


def test_vote_shares_may_be_outcomes():
    metrics = calibration([0.5, 0.9], [0.6, 0.8], bins=2, pairs=True)
    assert metrics["brier"] == pytest.approx(0.01)
    assert [part["outcome"] for part in metrics["bins"]] == [0.5, 0.8]


def test_equal_probabilities_share_a_bin_whatever_their_order():
    p, y = [0.5, 0.5, 0.5, 0.5, 0.9, 0.1], [1, 0, 1, 0, 1, 0]
    tables = [
        calibration([p[i] for i in order], [y[i] for i in order], bins=3)
        for order in ([*range(6)], [*range(5, -1, -1)])
    ]
    assert tables[0]["bins"] == tables[1]["bins"]
    assert [part["rows"] for part in tables[0]["bins"]] == [1, 5]
    constant = calibration([0.7] * 10, [1] * 7 + [0] * 3)
    assert len(constant["bins"]) == 1
    assert constant["ece"] == pytest.approx(0.0)


@pytest.mark.parametrize("lied_about", [(0, 1), (18, 19)])  # always the first of a pair, always the second
def test_the_bootstrap_over_texts_is_wider_than_over_pairs(lied_about):
    # 20 texts of which two are always lied about, in 190 pairs.
    pairs = np.array([*itertools.combinations(range(20), 2)])
    outcomes = np.where(np.isin(pairs, lied_about).any(axis=1), 0.0, 1.0)
    of_texts = calibration([0.8] * 190, outcomes, units=pairs[:, 0].tolist(), other_units=pairs[:, 1].tolist())
    of_pairs = calibration([0.8] * 190, outcomes)
    width = [np.diff(metrics["brier_ci95"])[0] for metrics in (of_texts, of_pairs)]
    assert width[0] > 2 * width[1]
    assert of_texts["brier"] == of_pairs["brier"]


def test_one_prompt_alone_has_no_interval():
    assert calibration([0.2, 0.8], [0, 1], units=["a", "a"])["ece_ci95"] is None


@pytest.mark.parametrize(
    ("p", "y", "options", "message"),
    [
        ([0.5, 1.2], [0, 1], {}, "probabilities run from 0.5 to 1.2"),
        ([0.5, 0.6], [0, 2], {}, "outcomes run from 0 to 2"),
        ([0.5, 0.6], [1, 1], {}, "All 2 outcomes are 1; of one class"),
        ([0.5, 0.6], [0, 0], {}, "All 2 outcomes are 0; of one class"),
        ([0.5, 0.6], [0, 1], {"bins": 0}, "bins is 0"),
        ([0.5, 0.6], [0, 1], {"other_units": [1, 2]}, "without units"),
        ([0.5, 0.6], [0, 1], {"units": [1]}, "1 units for 2 rows"),
        ([0.5, 0.6], [0, 1], {"units": [1, 2], "other_units": [1]}, "1 other_units for 2 rows"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(p, y, options, message):
    with pytest.raises(ValueError, match=message):
        calibration(p, y, **options)


# --- best of n -------------------------------------------------------------------------------------------


def by_enumeration(scores, quality, n):
    """The win rate over all draws of n, all ways to break ties, and all opponents."""
    total, ways = 0.0, 0
    for drawn in itertools.combinations(range(len(scores)), n):
        best = [i for i in drawn if scores[i] == max(scores[j] for j in drawn)]
        for i in best:
            others = [j for j in range(len(scores)) if j != i]
            wins = [(quality[i] > quality[j]) + 0.5 * (quality[i] == quality[j]) for j in others]
            total += sum(wins) / len(others) / len(best)
        ways += 1
    return total / ways


def test_win_rates_worked_out_by_hand():
    # Three texts in the right order: the best of two is best in 2 of 3 draws, else the middle one.
    curve = win_rate_curve([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert [point["n"] for point in curve] == [1, 2, 3]
    assert [point["win_rate"] for point in curve] == pytest.approx([0.5, (2 * 1 + 0.5) / 3, 1.0])
    assert [point["ceiling"] for point in curve] == [point["win_rate"] for point in curve]
    wrong = win_rate_curve([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])
    assert [point["win_rate"] for point in wrong] == pytest.approx([0.5, 0.5 / 3, 0.0])


def test_win_rates_are_those_of_all_draws_with_ties_too():
    scores, quality = [1.0, 1.0, 2.0, 0.0, 2.0, 1.0], [0.0, 3.0, 3.0, 1.0, 2.0, 3.0]
    curve = win_rate_curve(scores, quality)
    assert [point["win_rate"] for point in curve] == pytest.approx(
        [by_enumeration(scores, quality, n) for n in range(1, 7)]
    )
    assert [point["ceiling"] for point in curve] == pytest.approx(
        [by_enumeration(quality, quality, n) for n in range(1, 7)]
    )


def test_a_score_that_says_nothing_wins_half():
    curve = win_rate_curve([0.0] * 5, [5.0, 1.0, 2.0, 2.0, 0.0])
    assert [point["win_rate"] for point in curve] == pytest.approx([0.5] * 5)


def test_win_rates_are_averaged_over_prompts_with_enough_texts():
    prompts = ["a", "a", "b", "b", "b", "c"]
    scores, quality = [1.0, 0.0, 1.0, 2.0, 3.0, 9.0], [1.0, 0.0, 3.0, 2.0, 1.0, 0.0]
    curve = win_rate_curve(scores, quality, prompts)
    assert [point["n"] for point in curve] == [1, 2]  # "a" has two, and "c" nothing to compare
    assert [point["prompts"] for point in curve] == [2, 2]
    assert curve[1]["win_rate"] == pytest.approx((1.0 + 0.5 / 3) / 2)
    low, high = curve[1]["win_rate_ci95"]
    assert low < 0.5 / 3 < curve[1]["win_rate"] < high < 1.0
    longer = win_rate_curve(scores, quality, prompts, max_n=3)
    assert [point["prompts"] for point in longer] == [1, 1, 1]
    assert longer[2]["win_rate"] == 0.0
    assert longer[2]["win_rate_ci95"] is None


def test_a_large_pool_is_exact_and_has_an_interval():
    scores, quality = sample(200)
    curve = win_rate_curve(scores, quality)
    assert len(curve) == 16
    rates = [point["win_rate"] for point in curve]
    assert rates[0] == pytest.approx(0.5)
    assert rates == sorted(rates)
    assert curve[15]["win_rate_ci95"][0] < rates[15] < curve[15]["win_rate_ci95"][1]
    generator = np.random.default_rng(7)
    wins = []
    for _ in range(20_000):
        drawn = generator.choice(200, size=4, replace=False)
        best = generator.choice(drawn[scores[drawn] == scores[drawn].max()])
        other = (best + generator.integers(1, 200)) % 200
        wins.append(0.5 + 0.5 * np.sign(quality[best] - quality[other]))
    assert rates[3] == pytest.approx(np.mean(wins), abs=0.012)


@pytest.mark.parametrize(
    ("prompts", "max_n", "message"),
    [
        (["a", "b", "c"], None, "No prompt has 2 texts"),
        (["a", "a", "b"], 3, "No prompt has 3 texts .the most are 2"),
        (None, 4, "No prompt has 4 texts"),
        (None, 0, "max_n of 1 or more"),
    ],
)
def test_prompts_with_too_few_texts_are_refused(prompts, max_n, message):
    with pytest.raises(ValueError, match=message):
        win_rate_curve([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], prompts, max_n)


def test_all_figures_are_json():
    scores, ratings = sample(30)
    figures = [
        accuracy_by_margin(scores, ratings),
        rating_errors(scores, ratings),
        calibration(np.linspace(0, 1, 30), np.arange(30) % 2),
        win_rate_curve(scores, ratings),
        subset_accuracy(scores, ratings, ["a", "b"] * 15, sections={"all": ["a", "b"]}),
    ]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
