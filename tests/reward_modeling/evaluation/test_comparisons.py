"""Pairs, votes and lists, with numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss

from rlhf_recipes.reward_modeling.evaluation.comparisons import best_worst_quality, list_evaluation, pair_evaluation
from rlhf_recipes.reward_modeling.evaluation.subsets import REWARD_BENCH_SECTIONS
from tests.reward_modeling.feedback_rows import scored


def test_pairs_by_hand():
    rows = scored("pairs", [[2, 1], [1, 1], [0, 2]], chosen=["aa", "b", "c"], rejected=["d", "ee", "fff"])
    result = pair_evaluation(rows)
    assert result.flat["pairwise_accuracy"] == (1 + 0.5 + 0) / 3
    assert result.flat["pairs"] == 3
    assert result.flat["length_accuracy"] == pytest.approx(1 / 3)
    p = [1 / (1 + math.exp(-difference)) for difference in (1, 0, -2)]
    assert result.flat["log_loss"] == pytest.approx(-sum(map(math.log, p)) / 3)
    assert result.nested["accuracy"]["model"] == result.flat["pairwise_accuracy"]
    assert [case["better"] for case in result.nested["worst"]] == ["c"]  # a tie is not a mistake
    assert (result.nested["worst"][0]["better_score"], result.nested["worst"][0]["worse_score"]) == (0, 2)


def test_a_target_below_one_half_turns_the_pair():
    rows = scored(
        "pairs", [[2, 1], [2, 1], [5, 1]], chosen=["a", "b", "c"], rejected=["d", "e", "f"], target=[0.9, 0.2, 0.5]
    )
    result = pair_evaluation(rows, [0.9, 0.2, 0.5])
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (0.5, 2)
    assert [(case["better"], case["share"]) for case in result.nested["worst"]] == [("e", 0.8)]
    # The tie counts in the log loss: scikit-learn's, with each pair once for either side in its weight.
    p = [1 / (1 + math.exp(-d)) for d in (1, 1, 4)]
    wanted = sklearn_log_loss([1, 1, 1, 0, 0, 0], p * 2, sample_weight=[0.9, 0.2, 0.5, 0.1, 0.8, 0.5])
    assert result.flat["log_loss"] == pytest.approx(wanted)


def test_votes_ask_the_majority_and_leave_ties_out():
    rows = scored(
        "votes", [[2, 1], [2, 1], [1, 3], [0, 1]],
        chosen=["a", "b", "c", "d"], rejected=["e", "f", "g", "h"],
        chosen_votes=[9.0, 1.0, 2.0, 5.0], rejected_votes=[1.0, 3.0, 2.0, 0.0],
    )  # fmt: skip
    result = pair_evaluation(rows, [0.9, 0.25, 0.5, 1.0])
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (pytest.approx(1 / 3), 3)
    # 9 to 1: nine right. 1 to 3: three right (each meets 1 to 2). 2 to 2: none. 5 to 0: five. 17 of 23.
    assert result.flat["single_rater_accuracy"] == pytest.approx(17 / 23)
    entropy = [0.9 * math.log(0.9) + 0.1 * math.log(0.1), 0.25 * math.log(0.25) + 0.75 * math.log(0.75), math.log(0.5)]
    assert result.nested["ceiling"]["log_loss"] == pytest.approx(-sum(entropy) / 4)
    buckets = {bucket["name"]: (bucket["accuracy"], bucket["pairs"]) for bucket in result.nested["by_margin"]["model"]}
    assert buckets == {"0.6 to 0.8": (0.0, 1), "0.8 to 1": (1.0, 1), "1": (0.0, 1)}


def test_ties_alone_have_no_order():
    rows = scored("votes", [[2, 1]], chosen=["a"], rejected=["b"], chosen_votes=[2.0], rejected_votes=[2.0])
    result = pair_evaluation(rows, [0.5])
    assert result.flat["pairwise_accuracy"] is None
    assert result.flat["pairs"] == 0
    assert result.flat["log_loss"] == pytest.approx(-0.5 * sum(math.log(1 / (1 + math.exp(d))) for d in (1, -1)))


def test_subsets_and_whole_sections_of_reward_bench():
    names = [*REWARD_BENCH_SECTIONS["Chat"], "mine"]
    right = [1, 1, 0, 1, 0, 0]
    scores = [[1, 0] if hit else [0, 1] for hit in right]
    texts = [str(number) for number in range(6)]
    rows = scored("pairs", scores, chosen=texts, rejected=[f"-{text}" for text in texts], subset=names)
    found = pair_evaluation(rows).nested["subsets"]
    assert found["subsets"]["mine"]["accuracy"] == 0.0
    # Weights of Chat: 100, 95, 95, 28 and 40 rows, of which the third and the fifth subset are wrong.
    assert found["sections"]["Chat"]["accuracy"] == pytest.approx((100 + 95 + 28) / 358)
    assert set(found["sections"]) == {"Chat"}


def test_margins_of_pairs_go_by_quarters():
    margins = [1.0, 2.0, 3.0, 4.0]
    scores = [[0, 1], [1, 0], [1, 0], [1, 0]]
    rows = scored("pairs", scores, chosen=list("abcd"), rejected=list("efgh"), margin=margins)
    buckets = pair_evaluation(rows).nested["by_margin"]["model"]
    assert [bucket["accuracy"] for bucket in buckets] == [0.0, 1.0, 1.0, 1.0]
    assert sum(bucket["pairs"] for bucket in buckets) == 4


def test_rankings_by_hand():
    # First list: the scores turn the last two. Second list: all turned.
    rows = scored(
        "rankings", [[3, 1, 2], [0, 1]], completions=[["a", "b", "c"], ["d", "e"]], ranks=[[1.0, 2.0, 3.0], [1.0, 2.0]]
    )
    result = list_evaluation(rows, [[-1, -2, -3], [-1, -2]])
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (2 / 4, 4)
    first = stats.kendalltau([3, 1, 2], [-1, -2, -3]).statistic
    assert result.flat["kendall"] == pytest.approx((first - 1) / 2)
    assert result.flat["top1_accuracy"] == 0.5
    assert result.flat["top1_chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    worst = result.nested["worst"]
    assert {(case["better"], case["worse"]) for case in worst} == {("b", "c"), ("d", "e")}
    assert [point["n"] for point in result.nested["win_rate"]] == [1, 2]


def test_tied_tops_share():
    rows = scored("rankings", [[1, 1, 0]], completions=[["a", "b", "c"]], ranks=[[1.0, 2.0, 2.0]])
    result = list_evaluation(rows, [[-1, -2, -2]])
    assert result.flat["top1_accuracy"] == 0.5
    assert result.flat["pairwise_accuracy"] == (0.5 + 1) / 2  # the pair of equal ranks is never asked


def test_best_and_worst_by_hand():
    assert best_worst_quality(4, 2, 0) == [-1, 0, 1, 0]
    rows = scored("best_worst", [[0, 5, 4, 1]], completions=[["w", "x", "b", "y"]], best=[2], worst=[0])
    result = list_evaluation(rows, [best_worst_quality(4, 2, 0)])
    # 2K - 3 = 5 pairs; only best against x is wrong.
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (4 / 5, 5)
    assert (result.flat["top1_accuracy"], result.flat["worst_accuracy"]) == (0.0, 1.0)
    assert "kendall" not in result.flat
    assert result.nested["worst"][0]["better"] == "b"


def test_pairs_of_one_prompt_are_drawn_together():
    scores = [[1, 0], [1, 0], [1, 0], [0, 1]]
    alone = scored("pairs", scores, chosen=list("abcd"), rejected=list("efgh"))
    together = scored("pairs", scores, prompt=["p", "p", "p", "q"], chosen=list("abcd"), rejected=list("efgh"))
    low, high = pair_evaluation(together).flat["pairwise_accuracy_ci95"]
    assert (low < 1e-3, high > 0.99) == (True, True)  # two prompts: one right, one wrong
    assert pair_evaluation(alone).flat["pairwise_accuracy_ci95"][0] > 0.1


def test_pairs_with_a_text_in_common_hang_together():
    scores = [[1, 0]] * 6 + [[0, 1]] * 6
    alone = scored("pairs", scores, chosen=list("abcdefghijkl"), rejected=list("mnopqrstuvwx"))
    shared = scored("pairs", scores, chosen=list("aaaaaabbbbbb"), rejected=list("mnopqrstuvwx"))
    widths = [np.ptp(pair_evaluation(rows).flat["pairwise_accuracy_ci95"]) for rows in (alone, shared)]
    assert widths[1] > 1.5 * widths[0]
