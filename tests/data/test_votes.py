import math

import numpy as np
import pytest

from rlhf_recipes.data.votes import (
    RatingModel,
    beta_preference,
    beta_shares,
    dawid_skene,
    named_votes,
    normal_order,
    numeric_votes,
    rater_weights,
    vote_shares,
)

NAN = float("nan")

# Six targets rated by four judges each: Shrout and Fleiss (1979), table 2.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# How fit five anaesthetists found 45 patients, the first of them thrice: Dawid and Skene (1979), table 1.
ANAESTHETISTS = """
    111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3|222 2 2 2 3|
    232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1|111 1 1 1 1|111 1 1 1 1|
    222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2|111 1 1 1 1|111 1 1 1 1|232 2 2 2 2|
    111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3|111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3|
    221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1|111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2
"""


# --- reading ---------------------------------------------------------------------------------------------


def test_missing_votes_are_left_out():
    series = numeric_votes([[1, None, 3], [NAN, 2.0], [], [None]])
    assert [of_text.tolist() for of_text in series] == [[1.0, 3.0], [2.0], [], []]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([], "no texts"),
        ([[1, 2], [3, "4"]], "votes in row 1 must be numbers, and row 1 is the text '4'"),
        ([[1, 2], [float("inf")]], "votes in row 1 of 1 of 1 rows are missing or not finite"),
        ([[1, 9]], "Row 0 has the vote 9, outside of the scale from -4 to 4"),
        (["12", "34"], "must be a list of votes, and is '12'"),
        ([1, 2], "must be a list of votes, and is 1"),
    ],
)
def test_votes_that_are_no_numbers_on_the_scale_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        numeric_votes(votes, -4, 4)


def test_votes_with_names_one_below_the_other():
    named = named_votes([["a", None], ["b", "c"]], [["Ann", "Bob"], ["Bob", "Cy"]])
    assert named.raters == ["Ann", "Bob", "Cy"]
    assert (named.rows.tolist(), named.of.tolist(), named.votes) == ([0, 1, 1], [0, 1, 2], ["a", "b", "c"])
    assert named_votes([[1, None], [2, 3]]).raters == [0, 1]  # of a matrix, the column is the rater


@pytest.mark.parametrize(
    ("votes", "raters", "message"),
    [
        ([[1, 2], [3]], None, "from 1 to 2 votes and it is not said whose"),
        ([[1, 2], [3]], [["a", "b"], ["a", "b"]], "in row 1"),
        ([[1]], [["a"], ["b"]], "1 rows against 2"),
        ([[1, 2]], [["a", None]], "A vote in row 0 has no rater"),
        ([[None], []], [["a"], []], "None of 2 texts has a vote"),
    ],
)
def test_votes_whose_raters_are_unclear_are_refused(votes, raters, message):
    with pytest.raises(ValueError, match=message):
        named_votes(votes, raters)


# --- soft labels -----------------------------------------------------------------------------------------


def test_vote_shares_worked_out_by_hand():
    votes = [[1, 2, 3], [2], [0, 4]]
    # 1 < 2, 2 = 2, 3 > 2: (0 + 0.5 + 1) / 3. Of six: 1>0 1<4 2>0 2<4 3>0 3<4.
    assert vote_shares(votes, [(0, 1), (1, 0), (0, 2)]).tolist() == [0.5, 0.5, 0.5]
    assert vote_shares([[2, 3], [2, 2, 1]], [(0, 1)]).tolist() == [5 / 6]  # 2=2 2=2 2>1 3>2 3>2 3>1
    assert vote_shares(votes, []).tolist() == []


def test_vote_shares_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match="Row 1 has no vote"):
        vote_shares([[1], [None]], [(0, 1)])
    with pytest.raises(ValueError, match="row numbers from 0 to 1"):
        vote_shares([[1], [2]], [(0, 2)])


def test_beta_shares_are_laplaces_rule():
    assert beta_shares([2, 0, 7], [0, 0, 3]).tolist() == [3 / 4, 1 / 2, 8 / 12]
    assert beta_shares([2], [0], prior=0.5).tolist() == [2.5 / 3]
    assert beta_shares([1], [0], ties=[2]).tolist() == [3 / 5]
    assert beta_shares([3], [1], prior=0.0).tolist() == [0.75]


def test_beta_preference_against_integrals_by_hand():
    # Of the density 3 p^2 after two votes of two: the integral from 1/2 to 1 is 1 - 1/8.
    # Of 6 p (1 - p) after one of each: 1/2. Of 4 p^3 after three of three: 15/16.
    assert beta_preference([2, 1, 3, 0], [0, 1, 0, 0]) == pytest.approx([7 / 8, 1 / 2, 15 / 16, 1 / 2])


@pytest.mark.parametrize(("wins", "prior"), [([-1], 1.0), ([NAN], 1.0), ([0], 0.0), ([1], -1.0)])
def test_impossible_tallies_are_refused(wins, prior):
    with pytest.raises(ValueError, match="0 or more|no votes"):
        beta_shares(wins, [0], prior=prior)
    with pytest.raises(ValueError, match="0 or more|above 0"):
        beta_preference(wins, [0], prior=prior)


# --- ratings ---------------------------------------------------------------------------------------------


def test_rating_model_on_the_published_table():
    # Shrout and Fleiss' table 3: between targets 11.24, within targets 6.26; ICC(1,1) = .17, ICC(1,4) = .44.
    model = RatingModel.fit(SHROUT_FLEISS)
    assert model.within == pytest.approx(6.26, abs=0.005)
    assert 4 * model.between + model.within == pytest.approx(11.24, abs=0.005)
    assert model.reliability() == pytest.approx(0.17, abs=0.005)
    assert model.reliability(4) == pytest.approx(0.44, abs=0.005)


def test_rating_model_finds_what_was_simulated_with_differing_numbers_of_votes():
    generator = np.random.default_rng(0)
    truth = generator.normal(1.0, 2.0, size=4000)
    votes = [t + generator.normal(0.0, 1.0, size=generator.integers(1, 8)) for t in truth]
    model = RatingModel.fit(votes)
    assert (model.mean, model.between, model.within) == pytest.approx((1.0, 4.0, 1.0), abs=0.15)
    means, variances = model.posterior(votes)
    errors = (means - truth) / np.sqrt(variances)
    assert errors.std() == pytest.approx(1.0, abs=0.05)  # the posterior is as wide as it is wrong
    rows = generator.integers(4000, size=(20_000, 2))
    said, right = model.preference(votes, rows), truth[rows[:, 0]] > truth[rows[:, 1]]
    unsure = (said > 0.6) & (said < 0.8)
    assert right[unsure].mean() == pytest.approx(said[unsure].mean(), abs=0.05)


def test_posterior_and_preference_worked_out_by_hand():
    model = RatingModel(mean=0.0, between=1.0, within=2.0)
    means, variances = model.posterior([[3, 3], [], [1]])
    # Two votes: b = 1 / (1 + 2/2) = 1/2. None: the prior. One: b = 1/3.
    assert means == pytest.approx([1.5, 0.0, 1 / 3])
    assert variances == pytest.approx([0.5, 1.0, 2 / 3])
    # (1.5 - 0) / sqrt(1.5) = 1.2247; Phi of it is 0.8897.
    assert model.preference([[3, 3], [], [1]], [(0, 1), (1, 0), (1, 1)]) == pytest.approx(
        [0.8897, 0.1103, 0.5], abs=1e-4
    )


def test_certain_and_equal_texts():
    assert normal_order([2.0, -2.0, 0.0], [0.0, 0.0, 0.0]).tolist() == [1.0, 0.0, 0.5]
    model = RatingModel.fit([[1, 1], [2, 2]])  # raters agree perfectly
    assert model.within == 0.0
    assert model.preference([[1, 1], [2, 2]], [(1, 0), (0, 0)]).tolist() == [1.0, 0.5]


def test_texts_that_do_not_differ_have_no_reliability():
    model = RatingModel.fit([[0, 2], [0, 2], [2, 0]])
    assert model.between == 0.0
    assert model.reliability(100) == 0.0
    assert model.preference([[0, 2], [5, 5]], [(1, 0)]).tolist() == [0.5]


def test_inverse_variance_weights_worked_out_by_hand():
    model = RatingModel(mean=0.0, between=1.0, within=2.0)
    assert model.weights([[1], [1, 1, 1], []]).tolist() == [0.75, 2.25, 0.0]
    # 1 / (2/1 + 1) = 1/3 and 1 / (2/4 + 1) = 2/3.
    assert model.weights([[1], [1] * 4], unexplained=1.0) == pytest.approx([2 / 3, 4 / 3])
    with pytest.raises(ValueError, match="at least one vote"):
        model.weights([[], []])
    with pytest.raises(ValueError, match="unexplained"):
        model.weights([[1]], unexplained=-1.0)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[1, 2]], "1 texts with votes"),
        ([[1], [2], [3]], "at most 1 for one"),
        ([[], [None]], "0 texts with votes, at most 0"),
        ([[2, 2], [2, 2]], "All 4 votes are 2"),
    ],
)
def test_a_rating_model_needs_texts_and_votes_that_differ(votes, message):
    with pytest.raises(ValueError, match=message):
        RatingModel.fit(votes)


# --- raters ----------------------------------------------------------------------------------------------


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
