import numpy as np
import pytest

from rlhf_recipes.data.raters.votes import (
    RatingModel,
    beta_shares,
    named_votes,
    normal_order,
    numeric_votes,
)

NAN = float("nan")

# Six targets rated by four judges each: Shrout and Fleiss (1979), table 2.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


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
        (["12", "34"], "must be a list of votes, and is '12'"),
        ([1, 2], "must be a list of votes, and is 1"),
    ],
)
def test_votes_that_are_no_numbers_on_the_scale_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        numeric_votes(votes)


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


def test_beta_shares_are_laplaces_rule():
    assert beta_shares([2, 0, 7], [0, 0, 3]).tolist() == [3 / 4, 1 / 2, 8 / 12]
    assert beta_shares([2], [0], prior=0.5).tolist() == [2.5 / 3]
    assert beta_shares([1], [0], ties=[2]).tolist() == [3 / 5]
    assert beta_shares([3], [1], prior=0.0).tolist() == [0.75]


@pytest.mark.parametrize(("wins", "prior"), [([-1], 1.0), ([NAN], 1.0), ([0], 0.0), ([1], -1.0)])
def test_impossible_tallies_are_refused(wins, prior):
    with pytest.raises(ValueError, match="0 or more|no votes"):
        beta_shares(wins, [0], prior=prior)


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
    with pytest.raises(ValueError, match="at least one vote"):
        model.weights([[], []])
    with pytest.raises(ValueError, match="votes that differ"):
        RatingModel(mean=0.0, between=1.0, within=0.0).weights([[1]])


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


def test_votes_that_agree_are_worth_less_than_as_many_independent_ones():
    # rho = 7 / 9; two votes are worth 2 / (1 + 7/9) = 9/8, and n of them never more than 1 / rho
    model = RatingModel(mean=3.0, between=7.0, within=2.0)
    assert model.effective_votes([1, 2, 0]) == pytest.approx([1.0, 9 / 8, 0.0])
    assert model.effective_votes([1e9]) == pytest.approx([9 / 7])
    assert RatingModel(0.0, 0.0, 2.0).effective_votes([1, 5]).tolist() == [1.0, 5.0]
    assert RatingModel(0.0, 2.0, 0.0).effective_votes([1, 5]).tolist() == [1.0, 1.0]


def test_votes_on_pairs_worked_out_by_hand():
    # n = 4, 2 and N = 2; within = (4 * 3/4 * 1/4 + 0) / (6 - 2) = 3/16, and the spread is
    # (4 * 1/16 + 2 * 1/4) / 2 = 3/8, so that between = (3/8 - 3/16) * 2 / 6 = 1/16
    model = RatingModel.of_pairs([3, 0, 0], [1, 2, 0])
    assert (model.mean, model.within, model.between) == pytest.approx((0.5, 3 / 16, 1 / 16))
    assert RatingModel.of_pairs([1, 2, 0], [3, 0, 0]) == model
    unanimous = RatingModel.of_pairs([2, 0], [0, 2])
    assert (unanimous.within, unanimous.between) == (0.0, 0.25)
    assert RatingModel.of_pairs([2, 3], [2, 3]).between == 0.0
    with pytest.raises(ValueError, match="2 pairs with votes and 2 votes"):
        RatingModel.of_pairs([1, 0], [0, 1])
    with pytest.raises(ValueError, match="0 or more"):
        RatingModel.of_pairs([-1], [3])


def test_votes_on_pairs_find_what_was_simulated_whichever_side_is_first():
    generator = np.random.default_rng(5)
    n = generator.integers(1, 12, size=20_000)
    share = generator.beta(2.0, 2.0, size=20_000)  # variance 1/20, and of a vote around it 1/4 - 1/20
    first = generator.binomial(n, share)
    model = RatingModel.of_pairs(first, n - first)
    assert (model.between, model.within) == pytest.approx((0.05, 0.20), abs=0.005)
    largest = np.maximum(first, n - first)
    sorted_sides = RatingModel.of_pairs(largest, n - largest)
    assert (sorted_sides.between, sorted_sides.within) == pytest.approx((model.between, model.within))
