import math

import pytest

from rlhf_recipes.reward_modeling.evaluation.metrics import (
    entropy,
    log_loss,
    mean_absolute_error,
    pair_metrics,
    pearson,
    rating_metrics,
    vote_rater_accuracy,
)
from rlhf_recipes.statistics import ratio_interval

TEXTS = ["awful", "a dull film", "a film", "a wonderful film indeed"]
RATINGS = [-3.0, -1.0, 0.0, 3.0]


def test_rating_metrics_worked_out_by_hand():
    metrics = rating_metrics(
        TEXTS,
        RATINGS,
        logits=[-1.0, 0.5, 0.0, 2.0],  # one of six pairs is turned
        scores=[-2.0, 0.0, 0.0, 3.0],
        votes=[[-3, -3], [-1, -1], [0, 0], [3, 3]],
    )
    assert metrics["pairwise_accuracy"] == pytest.approx(5 / 6)
    assert metrics["pairs"] == 6
    assert metrics["mae"] == pytest.approx((1 + 1 + 0 + 0) / 4)
    # Deviations of the ratings from -0.25: -2.75 -0.75 0.25 3.25; of the scores from 0.25: -2.25 -0.25 -0.25 2.75.
    # Products sum to 6.1875 + 0.1875 - 0.0625 + 8.9375 = 15.25; squares to 18.75 and 12.75.
    assert metrics["pearson"] == pytest.approx(15.25 / (18.75 * 12.75) ** 0.5)
    assert metrics["single_rater_accuracy"] == 1.0
    # VADER: awful -, dull -, nothing, wonderful +. Of the two negative words it holds "awful" for the worse one.
    assert metrics["vader_accuracy"] == 1.0
    # Lengths 5, 11, 6, 23: one of six pairs is turned.
    assert metrics["length_accuracy"] == pytest.approx(5 / 6)
    low, high = metrics["pairwise_accuracy_ci95"]
    assert 0 <= low <= 5 / 6 <= high <= 1


def test_what_was_not_given_is_left_out():
    metrics = rating_metrics(TEXTS, RATINGS, logits=[-1.0, 0.5, 0.0, 2.0])
    assert not {"mae", "single_rater_accuracy"} & set(metrics)
    # Without a calibration the correlation is that of the logits: from 0.375, -1.375 0.125 -0.375 1.625.
    # Products 3.78125 - 0.09375 - 0.09375 + 5.28125 = 8.875; squares 18.75 and 4.6875.
    assert metrics["pearson"] == pytest.approx(8.875 / (18.75 * 4.6875) ** 0.5)


def test_pair_metrics_worked_out_by_hand():
    metrics = pair_metrics(
        ["good", "good", "bad", "fine film"],
        ["bad", "bad", "good", "film fine"],
        [2.0, 1.0, 0.0, 5.0],
        [1.0, 1.0, 2.0, 4.0],
    )
    assert metrics["pairwise_accuracy"] == (1 + 0.5 + 0 + 1) / 4
    assert metrics["pairs"] == 4
    assert metrics["vader_accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert metrics["length_accuracy"] == (1 + 1 + 0 + 0.5) / 4  # 4 against 3 letters, twice, 3 against 4, 9 against 9
    low, high = metrics["pairwise_accuracy_ci95"]
    assert low < 0.625 < high


def test_the_interval_of_pairs():
    # All of 60 are right: 0.95 would do so in 1 run of 20, and 0.93 in 1 of 80.
    low, high = pair_metrics(["a"] * 60, ["b"] * 60, [1.0] * 60, [0.0] * 60)["pairwise_accuracy_ci95"]
    assert 0.93 < low < 0.95
    assert high == 1.0
    # 100 pairs, half right: sqrt(0.25 / 100) = 0.05, so about 0.5 +- 1.96 * 0.05.
    low, high = pair_metrics(["a"] * 100, ["b"] * 100, [1.0, -1.0] * 50, [0.0] * 100)["pairwise_accuracy_ci95"]
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)


def test_pearson_literals():
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert pearson([1, 1, 1], [1, 2, 3]) == 0.0


def test_mean_absolute_error_literal():
    assert mean_absolute_error([1.0, -2.0, 0.5], [0.0, -4.0, 0.5]) == 1.0


def test_log_loss_literals():
    # Equal scores say 1/2 of either side: log 2, whatever people say.
    assert log_loss([0.0, 0.0], [1.0, 0.3]) == pytest.approx(math.log(2))
    # A logit of log 3 is p = 3/4.
    assert log_loss([math.log(3)], [1.0]) == pytest.approx(-math.log(0.75))
    assert log_loss([math.log(3)], [0.75]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert log_loss([1000.0], [0.0]) == pytest.approx(1000.0)  # and no overflow


def test_entropy_is_the_least_log_loss():
    assert entropy([0.5]) == pytest.approx(math.log(2))
    assert entropy([0.0, 1.0]) == 0.0
    shares = [0.2, 0.9]
    best = log_loss([math.log(share / (1 - share)) for share in shares], shares)
    assert entropy(shares) == pytest.approx(best)
    assert log_loss([0.0, 1.0], shares) > best


def test_one_voter_against_the_others():
    # 3 to 1: each of the three meets 2 to 1 and agrees; the one meets 3 to 0 and does not. 3 of 4.
    assert vote_rater_accuracy([3], [1]) == 0.75
    # 1 to 1: each meets one vote against, and is wrong. 2 to 1: two meet 1 to 1, half each; the one is wrong. 1 of 3.
    assert vote_rater_accuracy([1], [1]) == 0.0
    assert vote_rater_accuracy([2], [1]) == pytest.approx(1 / 3)
    # Voters count alike: 3 of the 4 of the one pair, 1 of the 3 of the other, 4 of 7.
    assert vote_rater_accuracy([3, 2, 1], [1, 1, 0]) == pytest.approx(4 / 7)
    assert vote_rater_accuracy([1, 0], [0, 1]) is None


def test_interval_of_a_ratio():
    assert ratio_interval([1.0], [1.0]) is None
    # 100 units of one, half of them right: sqrt(0.25 / 100) = 0.05.
    low, high = ratio_interval([1.0, 0.0] * 50, [1.0] * 100)
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
