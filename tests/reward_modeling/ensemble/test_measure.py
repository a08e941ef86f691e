import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr

from rlhf_recipes.reward_modeling.ensemble.measure import (
    Comparisons,
    by_disagreement,
    comparisons,
    error_by_disagreement,
    pair_calibration,
    read_rows,
)


def by_length(prompts, completions):
    """Two members: the length of a text, and its negative."""
    lengths = [len(text) for text in completions]
    return np.array([lengths, [-length for length in lengths]])


def read(columns, kind):
    return read_rows(by_length, Dataset.from_dict(columns), kind)


def test_each_text_is_read_once_and_finds_its_row_again():
    found = read({"chosen": ["bb", "ccc"], "rejected": ["a", "bb"]}, "pairs")
    assert found.completions == ["bb", "a", "ccc"]
    assert found.raw.tolist() == [[2, 1, 3], [-2, -1, -3]]
    assert found.places == [[0, 1], [2, 0]]
    assert found.with_scores(np.array([5.0, 6.0, 7.0])).scores == [[5.0, 6.0], [7.0, 5.0]]


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        # Apart by half a point or more: c over a and b over a, but not c over b.
        ({"completion": ["a", "b", "c"], "score": [0.0, 0.5, 0.9]}, "ratings", {("b", "a"), ("c", "a")}),
        ({"completion": ["a", "b", "c"], "label": [True, False, True]}, "unpaired", {("a", "b"), ("c", "b")}),
        ({"chosen": ["a", "b"], "rejected": ["c", "a"]}, "pairs", {("a", "c"), ("b", "a")}),
        # Half of the people each: no order.
        ({"chosen": ["a", "b"], "rejected": ["c", "d"], "target": [0.2, 0.5]}, "pairs", {("c", "a")}),
        (
            {"chosen": ["a", "b"], "rejected": ["c", "d"], "chosen_votes": [1, 2], "rejected_votes": [3, 2]},
            "votes",
            {("c", "a")},
        ),
        (
            {"completions": [["a", "b", "c"]], "ranks": [[2, 1, 2]]},
            "rankings",
            {("b", "a"), ("b", "c")},
        ),
        (
            {"completions": [["a", "b", "c"]], "best": [2], "worst": [0]},
            "best_worst",
            {("c", "a"), ("c", "b"), ("b", "a")},
        ),
    ],
)
def test_who_is_better_is_what_people_say(columns, kind, expected):
    found = read(columns, kind)
    asked = comparisons(found)
    pairs = {(found.completions[b], found.completions[w]) for b, w in zip(asked.better, asked.worse, strict=True)}
    assert pairs == expected


def test_where_people_say_no_order_there_are_no_pairs():
    assert comparisons(read({"completion": ["a", "b"], "score": [0.0, 0.1]}, "ratings")) is None
    assert comparisons(read({"completion": ["a", "b"], "scores": [{"x": 1.0}, {"x": 2.0}]}, "objectives")) is None


def test_accuracy_by_thirds_of_disagreement():
    """Three members, six pairs of texts of their own: text 0 is better than 1, 2 than 3, and so on."""
    differences = np.array(
        [
            [1.0, 1.0, 2.0, 2.0, 5.0, -6.0],
            [1.0, 1.1, 2.0, 2.4, -4.0, 1.0],
            [1.0, 1.2, 2.6, 1.6, -4.0, -1.0],
        ]
    )
    z = np.zeros((3, 12))
    z[:, ::2] = differences
    asked = Comparisons(np.arange(0, 12, 2), np.arange(1, 12, 2), np.arange(12))
    found = by_disagreement(asked, z)
    # Standard deviations rise from pair to pair but for the middle; means are above 0 for the first four.
    assert [part["pairs"] for part in found["parts"]] == [2, 2, 2]
    assert [part["accuracy"] for part in found["parts"]] == [1.0, 1.0, 0.0]
    assert found["parts"][0]["from"] == 0.0
    assert found["parts"][2]["to"] == pytest.approx(np.std([5.0, -4.0, -4.0]))
    assert (found["unanimous"]["pairs"], found["unanimous"]["accuracy"]) == (4, 1.0)
    assert (found["divided"]["pairs"], found["divided"]["accuracy"]) == (2, 0.0)


def test_the_closest_pairs_are_those_of_which_the_mean_says_least():
    """Means of the differences 3, -1, 0.5 and 2; the members are divided over the first two."""
    z = np.zeros((2, 8))
    z[:, ::2] = [[7.0, 1.0, 0.4, 2.0], [-1.0, -3.0, 0.6, 2.0]]
    found = by_disagreement(Comparisons(np.arange(0, 8, 2), np.arange(1, 8, 2), np.arange(8)), z)
    assert (found["divided"]["pairs"], found["divided"]["accuracy"]) == (2, 0.5)  # 3 is right, -1 is wrong
    assert (found["closest"]["pairs"], found["closest"]["accuracy"]) == (2, 0.5)  # 0.5 is right, -1 is wrong
    z[:, 0] = [7.0, -8.0]
    found = by_disagreement(Comparisons(np.arange(0, 8, 2), np.arange(1, 8, 2), np.arange(8)), z)
    assert found["divided"]["accuracy"] == 0.0
    assert found["closest"]["accuracy"] == 0.5  # -0.5 is wrong, 0.5 is right


def test_members_that_never_differ_have_no_divided_pairs():
    z = np.array([[1.0, 0.0, 3.0], [1.0, 0.0, 3.0]])
    found = by_disagreement(Comparisons(np.array([0, 2]), np.array([1, 0]), np.arange(3)), z)
    assert found["divided"] == found["closest"] == {"accuracy": None, "accuracy_ci95": None, "pairs": 0}
    assert found["unanimous"]["accuracy"] == 1.0


def test_pairs_with_a_text_in_common_say_less_than_pairs_of_their_own():
    own = Comparisons(np.arange(0, 40, 2), np.arange(1, 40, 2), np.arange(40))
    star = Comparisons(np.zeros(20, dtype=int), np.arange(1, 21), np.array([0] * 11 + [*range(1, 11)]))
    right = np.array([1.0] * 10 + [0.0] * 10)
    widths = [np.ptp(asked.mean(right)[1]) for asked in (own, star)]
    assert widths[1] > 1.5 * widths[0]


def test_the_interval_of_a_mean_holds_it():
    generator = np.random.default_rng(0)
    asked = Comparisons(np.arange(0, 400, 2), np.arange(1, 400, 2), np.repeat(np.arange(200), 2))
    right = (generator.random(200) < 0.8).astype(float)
    mean, (low, high) = asked.mean(right)
    assert mean == right.mean()
    half = 1.96 * np.sqrt(mean * (1 - mean) / 200)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.35)


def test_the_probability_of_an_ensemble_is_the_mean_of_those_of_its_members():
    """Members say +2 and -2 of every pair, of which half are right: each alone is too sure, together they say 0.5."""
    raw = np.zeros((2, 40))
    raw[0, :20:2], raw[0, 20::2] = 2.0, -2.0
    raw[1] = -raw[0]
    found = pair_calibration(Comparisons(np.arange(0, 40, 2), np.arange(1, 40, 2), np.repeat(np.arange(20), 2)), raw)
    sure = 1 / (1 + np.exp(-2.0))
    assert found["adapter_0"]["ece"] == pytest.approx(sure - 0.5)
    assert found["ensemble"]["ece"] == pytest.approx(0.0)
    assert found["ensemble"]["log_loss"] == pytest.approx(np.log(2))
    assert found["mean_of_members"]["log_loss"] == pytest.approx(-(np.log(sure) + np.log(1 - sure)) / 2)


def test_disagreement_that_foretells_error_is_seen():
    spread = np.linspace(0.1, 1.0, 40)
    found = error_by_disagreement(spread, spread**2, parts=4)
    assert found["spearman"] == pytest.approx(1.0)
    assert [part["texts"] for part in found["parts"]] == [10] * 4
    assert found["parts"][0]["disagreement"] == pytest.approx(spread[:10].mean())
    assert found["parts"][3]["error"] == pytest.approx((spread[30:] ** 2).mean())
    noise = np.random.default_rng(1).random(40)
    assert error_by_disagreement(spread, noise)["spearman"] == pytest.approx(spearmanr(spread, noise).statistic)
