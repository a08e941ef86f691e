import logging
from collections import Counter

import numpy as np
import pytest

from rlhf_recipes.data.pairs import compare_all, draw_pairs
from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, all_pairs_interval, single_rater_accuracy

LETTERS = list("abcdefgh")
RATINGS = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]


def as_texts(pairs, texts):
    return [(texts[chosen], texts[rejected]) for chosen, rejected in pairs]


def test_each_pass_uses_every_text_once_and_the_chosen_one_is_rated_higher():
    pairs = draw_pairs(LETTERS, RATINGS, passes=3)
    assert pairs.shape == (12, 2)
    for start in (0, 4, 8):
        assert sorted(pairs[start : start + 4].ravel()) == list(range(8))
    assert all(RATINGS[chosen] - RATINGS[rejected] >= 0.5 for chosen, rejected in pairs)
    assert len({tuple(pair) for pair in pairs}) > 4  # partners change from pass to pass


def test_pairs_depend_on_the_seed_and_not_on_the_order_of_the_rows():
    forwards = as_texts(draw_pairs(LETTERS, RATINGS, passes=2, seed=1), LETTERS)
    backwards = as_texts(draw_pairs(LETTERS[::-1], RATINGS[::-1], passes=2, seed=1), LETTERS[::-1])
    assert forwards == backwards
    assert forwards != as_texts(draw_pairs(LETTERS, RATINGS, passes=2, seed=2), LETTERS)


def test_partners_are_exchanged_until_every_text_has_one_far_enough():
    # Two groups of ties: a text of one must meet a text of the other, which a single shuffle hardly ever gives.
    texts, ratings = [str(row) for row in range(40)], [1.0] * 20 + [5.0] * 20
    pairs = draw_pairs(texts, ratings)
    assert len(pairs) == 20
    assert {(ratings[chosen], ratings[rejected]) for chosen, rejected in pairs} == {(5.0, 1.0)}


def test_texts_without_a_partner_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        pairs = draw_pairs(["a", "b", "c", "d", "e", "f"], [0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    assert len(pairs) == 1
    assert pairs[0][0] == 5
    assert "2 of 3 pairs could not be drawn" in caplog.text


def test_an_odd_text_sits_out_a_pass():
    counts = Counter(draw_pairs(["a", "b", "c"], [0.0, 1.0, 2.0], passes=30).ravel().tolist())
    assert sum(counts.values()) == 60
    assert min(counts.values()) >= 10  # not always the same one


def test_a_gap_that_is_exact_on_paper_counts():
    assert 2.3 - 1.8 < 0.5
    assert len(draw_pairs(["a", "b"], [1.8, 2.3], min_gap=0.5)) == 1
    assert all_pairs_accuracy([0.0, 1.0], [1.8, 2.3], min_gap=0.5) == (1.0, 1)


@pytest.mark.parametrize(
    ("ratings", "options", "message"),
    [
        ([1.0, 1.0, 1.0], {}, "all ratings lie between 1 and 1"),
        ([1.0, 1.0, 1.0], {"min_gap": 0.0}, "ties say nothing"),
        ([1.0, 1.2, 1.4], {}, "0.5 or more apart"),
        ([], {}, "there are no rows"),
        ([1.0, float("nan"), 2.0], {}, "finite"),
        ([1.0, 2.0], {}, "3 texts and 2 ratings"),
        ([1.0, 2.0, 3.0], {"passes": 0}, "at least 1 pass"),
    ],
)
def test_what_cannot_be_paired_is_refused(ratings, options, message):
    with pytest.raises(ValueError, match=message):
        draw_pairs(["a", "b", "c"] if ratings else [], ratings, **options)


def test_accuracy_over_all_pairs_worked_out_by_hand():
    ratings = [0.0, 0.4, 1.0, 2.0]
    # Pairs 0.5 or more apart: (0, 1.0) (0, 2.0) (0.4, 1.0) (0.4, 2.0) (1.0, 2.0); not (0, 0.4).
    assert all_pairs_accuracy([1.0, 2.0, 3.0, 4.0], ratings) == (1.0, 5)
    assert all_pairs_accuracy([4.0, 3.0, 2.0, 1.0], ratings) == (0.0, 5)
    assert all_pairs_accuracy([7.0, 7.0, 7.0, 7.0], ratings) == (0.5, 5)
    # Scores 3, 1, 2, 3: wrong, half, right, right, right.
    assert all_pairs_accuracy([3.0, 1.0, 2.0, 3.0], ratings) == (0.7, 5)
    # From a gap of 1 on: (0, 1.0) (0, 2.0) (0.4, 2.0) (1.0, 2.0).
    assert all_pairs_accuracy([3.0, 1.0, 2.0, 3.0], ratings, min_gap=1.0) == (0.625, 4)
    assert all_pairs_accuracy([1.0, 2.0, 2.0], [0.0, 1.0, 1.0], min_gap=0.0) == (1.0, 2)  # a tie is never asked


def test_accuracy_is_the_same_when_the_rows_do_not_fit_one_chunk(monkeypatch):
    generator = np.random.default_rng(0)
    scores, ratings = generator.normal(size=50).round(1), generator.normal(size=50)
    whole = all_pairs_accuracy(scores, ratings)
    monkeypatch.setattr("rlhf_recipes.data.pairs.ROWS_AT_ONCE", 7)
    assert all_pairs_accuracy(scores, ratings) == whole


def test_accuracy_needs_pairs_and_numbers():
    with pytest.raises(ValueError, match="no pair can be asked"):
        all_pairs_accuracy([1.0, 2.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        all_pairs_accuracy([1.0, float("nan")], [3.0, 1.0])
    with pytest.raises(ValueError, match="2 scores and 3 ratings"):
        all_pairs_accuracy([1.0, 2.0], [3.0, 1.0, 2.0])


def test_interval_of_three_texts_all_in_order_is_wide_and_ends_at_the_border():
    low, high = all_pairs_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (low < 0.1, high) == (True, 1.0)
    assert all_pairs_interval([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx([0.0, 1 - low])
    assert all_pairs_interval([1.0, 2.0], [1.0, 1.2]) is None


def test_each_text_is_met_in_all_of_its_pairs():
    # Gaps of 1 and more: 0-1 is right, 0-2 tied, 1-2 wrong.
    found = compare_all([1.0, 2.0, 1.0], [0.0, 1.0, 2.0], 1.0)
    assert found.right.tolist() == [1.5, 1.0, 0.5]
    assert found.asked.tolist() == [2, 2, 2]
    assert (found.pairs, found.share, found.squares) == (3, 0.5, 1.25)


def test_interval_is_that_of_texts_drawn_again():
    generator = np.random.default_rng(0)
    ratings = generator.normal(size=150)
    scores = ratings + generator.normal(size=150)
    drawn = [all_pairs_accuracy(scores[rows], ratings[rows])[0] for rows in generator.integers(150, size=(400, 150))]
    low, high = all_pairs_interval(scores, ratings)
    assert (high - low) / 3.92 == pytest.approx(np.std(drawn), rel=0.15)


def test_interval_of_texts_is_wider_than_one_of_pairs_would_be():
    generator = np.random.default_rng(0)
    ratings = generator.normal(size=200)
    scores = ratings + generator.normal(size=200)
    accuracy, pairs = all_pairs_accuracy(scores, ratings)
    low, high = all_pairs_interval(scores, ratings)
    assert low < accuracy < high
    assert high - low > 2 * 2 * 1.96 * (accuracy * (1 - accuracy) / pairs) ** 0.5


def test_single_rater_worked_out_by_hand():
    # Votes of two texts. Left out at 0: vote 1 against 3, means of the others 2 against 5: right.
    # At 1: 1 against 5, others (1+3)/2 = 2 against (3+5)/2 = 4: right. At 2: 3 against 5, others 1 against 4: right.
    assert single_rater_accuracy([[1, 1, 3], [3, 5, 5]]) == 1.0
    # At 0: 2 against 2 is half, others 1 against 4. At 1: 0 against 5, others 2 against 2.5: right (gap 0.5).
    # At 2: 2 against 3, others 1 against 3.5: right. So (0.5 + 1 + 1) / 3.
    assert single_rater_accuracy([[2, 0, 2], [2, 5, 3]]) == pytest.approx(2.5 / 3)
    # At 0: vote 4 against 0, others 0 against 4: wrong. At 1: 0 against 4, others 4 against 0: wrong.
    assert single_rater_accuracy([[4, 0], [0, 4]]) == 0.0


def test_single_rater_leaves_out_texts_without_another_vote():
    votes = [[1, 1, 3], [3, 5, 5]]
    assert single_rater_accuracy([*votes, [4]]) == single_rater_accuracy(votes)
    # The fourth vote of the second text has nothing to be compared with, but belongs to its mean.
    assert single_rater_accuracy([[1, 1, 3], [3, 5, 5, 5]]) == 1.0
    with pytest.raises(ValueError, match="Two votes"):
        single_rater_accuracy([[1], [4]])
    with pytest.raises(ValueError, match="No two of 0 texts"):
        single_rater_accuracy([])
