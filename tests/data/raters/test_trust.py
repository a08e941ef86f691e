"""Models of raters who err, against a published example and simulations."""

import math

import numpy as np
import pytest

from rlhf_recipes.data.raters.trust import dawid_skene, rater_weights

NAN = float("nan")

# How fit five anaesthetists found 45 patients, the first of them thrice: Dawid and Skene (1979), table 1.
ANAESTHETISTS = """
    111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3|222 2 2 2 3|
    232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1|111 1 1 1 1|111 1 1 1 1|
    222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2|111 1 1 1 1|111 1 1 1 1|232 2 2 2 2|
    111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3|111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3|
    221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1|111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2
"""


def test_rater_weights_find_careless_and_lenient_raters():
    generator = np.random.default_rng(1)
    truth = generator.normal(size=600)
    spreads, biases = np.array([0.3, 0.6, 1.2, 2.4]), np.array([0.5, -0.5, 0.0, 0.0])
    votes = truth[:, None] + biases + generator.normal(size=(600, 4)) * spreads
    votes[generator.random((600, 4)) < 0.2] = NAN
    found = rater_weights(votes.tolist())
    assert found.raters == [0, 1, 2, 3]
    assert np.sqrt(found.variance) == pytest.approx(spreads, abs=0.15)
    assert found.bias - found.bias.mean() == pytest.approx(biases, abs=0.2)
    assert found.weights.mean() == pytest.approx(1.0)
    seen = np.isfinite(found.ratings)
    errors = (found.ratings - truth)[seen] - (found.ratings - truth)[seen].mean()
    plain = (np.nanmean(votes[seen], axis=1) - truth[seen]) - np.nanmean(votes[seen], axis=1).mean()
    assert errors.std() < 0.7 * plain.std()


def test_rater_weights_of_equally_good_raters_are_equal():
    # Each text has votes of t - 1, t and t + 1, each rater one of each.
    found = rater_weights([[0, 1, 2], [5, 3, 4], [3, 4, 2]], [list("cab"), list("cab"), list("cab")])
    assert found.raters == ["a", "b", "c"]
    assert found.weights == pytest.approx([1.0, 1.0, 1.0])
    assert found.bias == pytest.approx([0.0, 0.0, 0.0])
    assert found.ratings == pytest.approx([1.0, 4.0, 3.0])


def test_a_text_without_votes_has_no_rating_and_a_lonely_vote_changes_no_weight():
    votes = [[0, 1], [3, 2], [5, 6], [2, 2]]
    with_more = rater_weights([*votes, [None, None], [9, None]])
    assert math.isnan(with_more.ratings[4])
    assert with_more.ratings[5] == pytest.approx(9 - with_more.bias[0])
    assert with_more.weights == pytest.approx(rater_weights(votes).weights)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[1], [2]], "1 raters and at most 1 votes"),
        ([[1, None], [None, 2]], "2 raters and at most 1 votes"),
        ([[1, 2], [3, 4]], "all raters agree"),
        ([["1", "2"]], "must be numbers"),
    ],
)
def test_raters_that_cannot_be_weighted_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        rater_weights(votes)


def test_dawid_and_skenes_own_example():
    rows = [row.split() for row in "".join(ANAESTHETISTS.split("\n")).split("|")]
    labels = [[int(label) for group in row for label in group] for row in rows]
    raters = [["first"] * 3 + ["second", "third", "fourth", "fifth"]] * 45
    found = dawid_skene(labels, raters, smoothing=0.0)
    # The paper's table 2: shares of the four classes, and the error rates of the first anaesthetist.
    assert found.prior == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.005)
    assert found.confusion[found.raters.index("first")][:3] == pytest.approx(
        np.array([[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0]]), abs=0.006
    )
    assert found.labels[:4] == [1, 4, 2, 2]
    assert found.posterior.sum(axis=1) == pytest.approx(np.ones(45))


def test_dawid_skene_finds_the_accuracy_of_simulated_raters_and_beats_the_majority():
    generator = np.random.default_rng(2)
    truth = generator.integers(3, size=1500)
    accuracy = np.array([0.95, 0.9, 0.5, 0.45, 0.4])
    right = generator.random((1500, 5)) < accuracy
    wrong = (truth[:, None] + generator.integers(1, 3, size=(1500, 5))) % 3
    given = np.where(right, truth[:, None], wrong)
    names = np.array(["bad", "good", "ugly"])
    found = dawid_skene([[names[label] for label in row] for row in given])
    assert found.accuracy == pytest.approx(accuracy, abs=0.05)
    assert found.prior == pytest.approx([1 / 3] * 3, abs=0.05)
    majority = np.array([np.bincount(row, minlength=3).argmax() for row in given])
    assert np.mean(np.array(found.labels) == names[truth]) > np.mean(majority == truth) + 0.1
    sure = found.posterior.max(axis=1)
    assert np.mean(np.array(found.labels) == names[truth]) == pytest.approx(sure.mean(), abs=0.02)


def test_dawid_skene_with_missing_labels_and_classes_that_nobody_gave():
    labels = [["a", "a", None], ["b", "b", "b"], [None, None, None], ["a", None, "a"], ["b", "b", "a"]]
    found = dawid_skene(labels, classes=["a", "b", "c"])
    assert found.posterior[2] == pytest.approx(found.prior)
    assert found.prior[2] < 0.01
    assert [found.labels[row] for row in (0, 1, 3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([["a"], ["b"]], {}, "1 raters and 2 classes"),
        ([["a", "a"], ["a", "a"]], {}, "1 classes"),
        ([["a", None], [None, "b"]], {}, "at most 1 labels"),
        ([["a", "b"]], {"classes": ["a", "c"]}, "'b' is none of the classes"),
        ([["a", 1]], {}, "int and str"),
        ([], {}, "None of 0 texts"),
        ([["a", "b"]], {"smoothing": -1.0}, "smoothing"),
    ],
)
def test_labels_that_dawid_skene_cannot_use_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        dawid_skene(labels, **options)
