"""Targets and weights of votes, by hand; uncertainty is counted once."""

import logging
import math

import numpy as np
import pytest

from rlhf_recipes.data.feedback.lists import rankings_to_pairs
from rlhf_recipes.data.feedback.pairs import votes_to_pairs
from rlhf_recipes.data.feedback.weights import add_weights, targets_from_votes
from rlhf_recipes.data.raters.trust import dawid_skene
from tests.data.feedback_examples import rows

NAN = float("nan")
# Means 2, 5 and 2, of all votes 3.2. Within: 2 / (5 - 3) = 1. Between: the squares 2 * 1.2^2 + 2 * 1.8^2 + 1.2^2 are
# 10.8, (10.8 / 2 - 1) / 1.6 = 2.75, with (5 - 9 / 5) / 2 = 1.6 votes a text. So rho = 2.75 / 3.75 = 11 / 15, and two
# votes are worth 2 / (1 + 11/15) = 15/13 of one.
VOTES = [[1, 3], [5, None, 5], [2]]


def test_means_weigh_what_their_votes_are_worth():
    target, weight = targets_from_votes(VOTES)
    assert target.tolist() == [2.0, 5.0, 2.0]
    assert weight == pytest.approx([45 / 43, 45 / 43, 39 / 43])  # 15/13, 15/13 and 1, over their mean


def test_posterior_means_are_pulled_to_that_of_all_and_weigh_the_same():
    target, weight = targets_from_votes(VOTES, how="posterior")
    # two votes keep 11/13 of their distance from 3.2, one keeps 11/15
    assert target == pytest.approx([3.2 - 1.2 * 11 / 13, 3.2 + 1.8 * 11 / 13, 3.2 - 1.2 * 11 / 15])
    assert weight.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("how", ["mean", "posterior"])
def test_a_text_without_votes_has_no_target_and_no_weight(how):
    target, weight = targets_from_votes([*VOTES, [], [None, NAN], None], how=how)
    assert [math.isnan(value) for value in target] == [False] * 3 + [True] * 3
    assert weight[3:].tolist() == [0.0] * 3
    assert weight[:3].mean() == pytest.approx(1.0)


def test_single_votes_weigh_the_same_and_it_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        target, weight = targets_from_votes([[1], [4], []])
    assert (target[:2].tolist(), weight.tolist()) == ([1.0, 4.0], [1.0, 1.0, 0.0])
    assert "weigh the same: There are 2 texts with votes, at most 1 for one" in caplog.text


def test_classes_become_the_share_of_votes_or_what_they_count():
    target, _ = targets_from_votes([[True, True, False, True], [False, None], [True, False]])
    assert target.tolist() == [0.75, 0.0, 0.5]
    target, _ = targets_from_votes([["good", "bad"], ["fair"]], label_map={"good": 1, "fair": 0.5, "bad": 0})
    assert target.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="class 'bad' is no number.*label_map={'bad': ..., 'good': ...}"):
        targets_from_votes([["good", "bad"]])
    with pytest.raises(ValueError, match="class 'good' is no number"):
        targets_from_votes([["good", "bad"]], label_map={"bad": 0})


def test_classes_of_known_raters_become_expected_classes():
    votes = [[1, 1, 3], [3, 3, 1], [1, 1, 1], [3, 3, 3], [1, 3, 3]]
    raters = [["Ann", "Bob", "Cy"]] * 5
    target, weight = targets_from_votes(votes, raters, how="dawid_skene")
    posterior = dawid_skene(votes, raters).posterior
    assert target == pytest.approx(posterior[:, 0] * 1 + posterior[:, 1] * 3)
    assert weight.tolist() == [1.0] * 5
    said = [["no" if vote == 1 else "yes" for vote in of_text] for of_text in votes]
    by_name, _ = targets_from_votes(said, raters, label_map={"no": 1, "yes": 3})
    assert by_name == pytest.approx(target)


def test_ratings_of_known_raters_are_nearer_to_the_truth_and_careful_raters_weigh_more():
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1, size=800)
    votes, raters = [], []
    for value in truth:
        there = generator.permutation(6)[:2]  # 0 to 2 are careful and strict, 3 to 5 careless and lenient
        noise = np.where(there < 3, 0.2, 2.0) * generator.standard_normal(2)
        votes.append((value + noise + np.where(there < 3, -1.0, 1.0)).tolist())
        raters.append([f"rater {number}" for number in there])
    target, weight = targets_from_votes(votes, raters)
    plain, _ = targets_from_votes(votes)
    assert np.corrcoef(target, truth)[0, 1] > np.corrcoef(plain, truth)[0, 1] + 0.1
    careful = np.array([all(name in ("rater 0", "rater 1", "rater 2") for name in of_text) for of_text in raters])
    careless = np.array([all(name not in ("rater 0", "rater 1", "rater 2") for name in of_text) for of_text in raters])
    # 1 / (1 + 0.04 / 2) against 1 / (1 + 4 / 2)
    assert weight[careful].mean() / weight[careless].mean() == pytest.approx(3 / 1.02, rel=0.15)


@pytest.mark.parametrize(
    ("votes", "options", "message"),
    [
        ([[1], [2]], {"how": "median"}, "how is 'median'; give one of auto, mean"),
        ([[], [None]], {}, "None of 2 texts has a vote"),
        ([[1], [2]], {"how": "posterior"}, "at most 1 for one"),
        ([[1, 2], [3]], {"how": "dawid_skene"}, "from 1 to 2 votes"),
        ([[1, 2], [3, 5]], {"raters": [["a"], ["b"]]}, "differ in number"),
        ([[1, "x"]], {}, "int and str"),
    ],
)
def test_what_cannot_be_made_a_target_is_refused(votes, options, message):
    with pytest.raises(ValueError, match=message):
        targets_from_votes(votes, **options)


# --- Columns ----------------------------------------------------------------------------------


def test_ratings_get_the_weights_of_their_votes(caplog):
    dataset = rows(completion=list("abcd"), score=[2.0, 5.0, 2.0, 4.0], votes=[[1, 3], [5, 5], [2], None])
    with caplog.at_level(logging.WARNING):
        weighted = add_weights(dataset, "votes")
    # 45/43, 45/43, 39/43 and 0 have the mean 3/4
    assert weighted["weight"][:] == pytest.approx([60 / 43, 60 / 43, 52 / 43, 0.0])
    assert weighted.remove_columns("weight").to_list() == dataset.to_list()
    assert "1 of 4 rows have no votes, and weigh 0" in caplog.text


def test_pairs_get_the_weights_of_their_votes_and_keep_them():
    dataset = rows(chosen=["a", "c"], rejected=["b", "d"], chosen_votes=[3, 0], rejected_votes=[1, 2])
    # within 3/16 and between 1/16 (see test_votes.py): rho = 1/4; 4 / (1 + 3/4) = 16/7 and 2 / (1 + 1/4) = 8/5
    weighted = add_weights(dataset, "votes")
    assert weighted["weight"][:] == pytest.approx([(16 / 7) / (68 / 35), (8 / 5) / (68 / 35)])
    assert votes_to_pairs(weighted)["weight"][:] == weighted["weight"][:]


def test_labels_and_groups_count_the_same_in_all():
    assert add_weights(rows(completion=list("abcd"), label=[1.0, 0.0, 0.0, 0.0]), "labels")["weight"][:] == (
        pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    )
    soft = add_weights(rows(completion=list("ab"), label=[0.5, 0.1]), "labels")  # 30% good
    assert soft["weight"][:] == pytest.approx([(0.5 / 0.3 + 0.5 / 0.7) / 2, (0.1 / 0.3 + 0.9 / 0.7) / 2])
    pairs = rankings_to_pairs(rows(completions=[["a", "b", "c"], ["d", "e"]], ranks=[[1, 2, 3], [1, 2]]))
    assert add_weights(pairs, "groups")["weight"][:] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    prompts = [[{"role": "user", "content": text}] for text in "pqp"]
    assert add_weights(rows(prompt=prompts), "groups")["weight"][:] == pytest.approx([0.75, 1.5, 0.75])
    assert add_weights(rows(author=[7, 7, 8]), "groups", "author")["weight"][:] == pytest.approx([0.75, 0.75, 1.5])


def test_weights_that_are_there_are_multiplied():
    dataset = rows(completion=list("abc"), prompt=list("ppq"), weight=[1.0, 3.0, 0.0])
    assert add_weights(dataset, "groups")["weight"][:] == pytest.approx([0.75, 2.25, 0.0])


@pytest.mark.parametrize(
    ("columns", "how", "message"),
    [
        (
            {"completion": ["a"], "score": [1.0]},
            "votes",
            "needs the columns 'votes', or 'chosen_votes'",
        ),
        ({"completion": ["a"], "label": [1.0]}, "labels", "one class only: all 1 labels are 1"),
        ({"completion": ["a"]}, "groups", "'source_row', or 'prompt'"),
        ({"completion": ["a"]}, "length", "give one of votes, labels, groups"),
        ({"prompt": ["a"], "weight": [0.0]}, "groups", "All weights are 0"),
    ],
)
def test_weights_that_cannot_be(columns, how, message):
    with pytest.raises(ValueError, match=message):
        add_weights(rows(**columns), how)
