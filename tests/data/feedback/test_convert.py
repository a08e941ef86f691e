"""Conversions of feedback, each by hand."""

import logging

import pytest

from rlhf_recipes.data.feedback.formats import CONVERSIONS
from rlhf_recipes.data.feedback.labels import clicks_to_unpaired, dwell_to_unpaired, steps_to_ratings
from rlhf_recipes.data.feedback.lists import best_worst_to_pairs, rankings_to_pairs, rankings_to_ratings
from rlhf_recipes.data.feedback.pairs import pairs_to_unpaired, votes_to_pairs
from rlhf_recipes.data.feedback.ratings import objectives_to_ratings, ratings_to_pairs, ratings_to_unpaired
from tests.data.feedback_examples import GOOD, assistant, rows, user


def test_rankings_become_all_pairs_or_those_of_neighbours():
    dataset = rows(
        prompt=["p", "q"], completions=[["b", "a", "c"], ["x", "y", "z"]], ranks=[[2, 1, 3], [1, 3, 1]], id=[7, 8]
    )
    every = rankings_to_pairs(dataset)
    assert list(zip(every["chosen"], every["rejected"], strict=True)) == [
        ("a", "b"), ("a", "c"), ("b", "c"), ("x", "y"), ("z", "y"),
    ]  # fmt: skip
    assert every["source_row"][:] == [0, 0, 0, 1, 1]
    assert (every["prompt"][3], every["id"][:]) == ("q", [7, 7, 7, 8, 8])
    near = rankings_to_pairs(dataset, which="adjacent")
    assert list(zip(near["chosen"], near["rejected"], strict=True)) == [("a", "b"), ("b", "c"), ("x", "y"), ("z", "y")]
    with pytest.raises(ValueError, match="give one of all, adjacent"):
        rankings_to_pairs(dataset, which="some")


def test_copies_in_a_ranking_make_no_pair(caplog):
    with caplog.at_level(logging.WARNING):
        pairs = rankings_to_pairs(rows(completions=[["a", "a", "b"]], ranks=[[1, 2, 3]]))
    assert [*zip(pairs["chosen"], pairs["rejected"], strict=True)] == [("a", "b"), ("a", "b")]
    assert "1 pairs of two identical texts" in caplog.text


def test_best_and_worst_imply_two_k_minus_three_pairs():
    dataset = rows(completions=[["a", "b", "c", "d"], ["x", "y"]], best=[2, 0], worst=[0, 1])
    pairs = best_worst_to_pairs(dataset)
    assert ["".join(pair) for pair in zip(pairs["chosen"], pairs["rejected"], strict=True)] == [
        "ca", "cb", "cd", "ba", "da", "xy",
    ]  # fmt: skip
    extremes = best_worst_to_pairs(dataset, which="extremes")
    assert (extremes["chosen"][:], extremes["rejected"][:]) == (["c", "x"], ["a", "y"])
    with pytest.raises(ValueError, match="give one of implied, extremes"):
        best_worst_to_pairs(dataset, which="all")


def test_messages_go_through_conversions():
    a, b = [assistant("a")], [assistant("b")]
    pairs = rankings_to_pairs(rows(prompt=[[user("p")]], completions=[[a, b]], ranks=[[2, 1]]))
    assert pairs[0] == {"prompt": [user("p")], "chosen": b, "rejected": a, "source_row": 0}
    single = pairs_to_unpaired(pairs.remove_columns("source_row"))
    assert single["completion"][:] == [b, a]


def test_votes_become_a_soft_label_of_the_better_one():
    dataset = rows(
        chosen=["a", "c", "e"],
        rejected=["b", "d", "f"],
        chosen_votes=[3, 1, 2],
        rejected_votes=[1, 4, 2],
        id=[1, 2, 3],
    )
    pairs = votes_to_pairs(dataset)
    assert pairs.to_list() == [
        {"id": 1, "chosen": "a", "rejected": "b", "target": 0.75},
        {"id": 2, "chosen": "d", "rejected": "c", "target": 0.8},
        {"id": 3, "chosen": "e", "rejected": "f", "target": 0.5},
    ]
    assert votes_to_pairs(dataset, smoothing=1)["target"][:] == pytest.approx([4 / 6, 5 / 7, 0.5])
    with pytest.raises(ValueError, match="smoothing is -1"):
        votes_to_pairs(dataset, smoothing=-1)


def test_ratings_become_labels_with_a_dead_zone(caplog):
    dataset = rows(completion=list("abcde"), score=[1.0, 2.5, 3.0, 3.5, 5.0], id=[0, 1, 2, 3, 4])
    hard = ratings_to_unpaired(dataset, threshold=3)
    assert hard["label"][:] == [False, False, True, True, True]
    assert hard.column_names == ["completion", "id", "label"]
    with caplog.at_level(logging.WARNING):
        soft = ratings_to_unpaired(dataset, threshold=3, dead_zone=0.5)
    assert (soft["completion"][:], soft["label"][:]) == (list("abde"), [False, False, True, True])
    assert "Left out 1 of 5 rows: within 0.5 of the threshold 3" in caplog.text
    # 2.3 - 1.8 is 0.4999999999999998, and on paper at the edge of the zone
    assert ratings_to_unpaired(rows(completion=["a"], score=[2.3]), 1.8, 0.5)["label"][:] == [True]
    with pytest.raises(ValueError, match="dead_zone -1"):
        ratings_to_unpaired(dataset, 3, -1)
    with pytest.raises(ValueError, match="None of 1 rows is left"):
        ratings_to_unpaired(rows(completion=["a"], score=[3.0]), 3, 1)


def test_rankings_become_the_share_of_the_others_that_are_beaten():
    dataset = rows(completions=[["a", "b", "c"], ["d", "e", "f", "g", "h"]], ranks=[[3, 1, 2], [1, 2, 2, 4, 9]])
    rated = rankings_to_ratings(dataset)
    # d beats 4 of 4; e and f beat 2 and tie with 1: 2.5 of 4; g beats 1; h none
    assert rated["score"][:] == [0.0, 1.0, 0.5, 1.0, 0.625, 0.625, 0.25, 0.0]
    assert "".join(rated["completion"]) == "abcdefgh"
    assert rated["source_row"][:] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_objectives_become_their_weighted_sum(caplog):
    dataset = rows(
        completion=["a", "b", "c"],
        scores=[{"x": 1.0, "y": 2.0, "z": 9.0}, {"x": 3.0, "y": 0.5, "z": 9.0}, {"x": None, "y": 1.0, "z": 9.0}],
    )
    with caplog.at_level(logging.WARNING):
        rated = objectives_to_ratings(dataset, {"x": 2.0, "y": -1.0})
    assert rated.to_list() == [{"completion": "a", "score": 0.0}, {"completion": "b", "score": 5.5}]
    assert "1 of 3 rows: an objective without a score" in caplog.text
    assert len(objectives_to_ratings(dataset, {"z": 1.0})) == 3
    with pytest.raises(ValueError, match="'w', which is no objective. There are x, y, z"):
        objectives_to_ratings(dataset, {"w": 1.0})
    with pytest.raises(ValueError, match="are empty"):
        objectives_to_ratings(dataset, {})


def test_pairs_become_two_rows_each():
    dataset = rows(prompt=["p", "q"], chosen=["a", "c"], rejected=["b", "d"], margin=[1.0, 2.0])
    assert pairs_to_unpaired(dataset).to_list() == [
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "p", "completion": "b", "label": False},
        {"prompt": "q", "completion": "c", "label": True},
        {"prompt": "q", "completion": "d", "label": False},
    ]
    soft = pairs_to_unpaired(rows(chosen=["a"], rejected=["b"], target=[0.75]))
    assert soft["label"][:] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("how", "scores"),
    [("mean", [0.75, 1.0]), ("min", [0.5, 1.0]), ("product", [0.5, 1.0]), ("last", [1.0, 1.0])],
)
def test_steps_become_one_text_and_one_score(how, scores):
    dataset = rows(prompt=["p", "q"], completions=[["a", "b"], ["c", "d"]], labels=[[0.5, 1.0], [1.0, None]])
    rated = steps_to_ratings(dataset, how)
    assert rated["score"][:] == scores
    assert rated["completion"][:] == ["a\n\nb", "c\n\nd"]
    assert steps_to_ratings(dataset, how, separator=" ")["completion"][0] == "a b"
    with pytest.raises(ValueError, match="give one of mean, min, product, last"):
        steps_to_ratings(dataset, "max")


def test_clicks_become_the_share_of_readers_who_like_it():
    dataset = rows(completion=list("abcd"), clicks=[5, 0, 9, 1], views=[10, 10, 10, 2])
    assert clicks_to_unpaired(dataset)["label"][:] == [0.5, 0.0, 0.9, 0.5]
    # (0.5 - 0.1) / (1 - 0.1 - 0.3) = 2/3; (0 - 0.1) / 0.6 is cut to 0, and (0.9 - 0.1) / 0.6 to 1
    noisy = clicks_to_unpaired(dataset, false_click=0.1, missed_click=0.3, min_views=3)
    assert noisy["label"][:] == pytest.approx([2 / 3, 0.0, 1.0])
    with pytest.raises(ValueError, match="false_click 0.5 and missed_click 0.5.*below 1"):
        clicks_to_unpaired(dataset, false_click=0.5, missed_click=0.5)


def test_a_click_rate_with_known_noise_gives_back_what_it_was_made_of():
    # of 1000 readers 400 like it; 80% of them click, and 5% of the other 600: 320 + 30
    dataset = rows(completion=["a"], clicks=[350], views=[1000])
    assert clicks_to_unpaired(dataset, 0.05, 0.2)["label"][0] == pytest.approx(0.4)


def test_dwell_times_become_chances_by_bayes_rule():
    dataset = rows(completion=["a", "b", "c"], dwell_seconds=[29.9, 30.0, 500.0])
    assert dwell_to_unpaired(dataset)["label"][:] == [0.0, 1.0, 1.0]
    # of 100 readers 40 content: 36 stay, 4 leave; 60 not: 12 stay, 48 leave
    noisy = dwell_to_unpaired(dataset, prior=0.4, false_stay=0.2, missed_stay=0.1)
    assert noisy["label"][:] == pytest.approx([4 / 52, 36 / 48, 36 / 48])
    assert dwell_to_unpaired(dataset, threshold=100)["label"][:] == [0.0, 0.0, 1.0]
    for wrong in ({"prior": 1.0}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match="give seconds above 0"):
            dwell_to_unpaired(dataset, **wrong)


def test_ratings_become_pairs_as_pairs_draws_them():
    dataset = rows(prompt=["p"] * 2 + ["q"] * 2, completion=list("abcd"), score=[1, 5, 4, 2])
    assert ratings_to_pairs(dataset).to_list() == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
    ]


def test_a_column_of_the_new_name_is_not_overwritten():
    dataset = rows(completion=["a", "b"], score=[1, 5], label=["x", "y"])
    with pytest.raises(ValueError, match="makes a column 'label', but the dataset has one"):
        ratings_to_unpaired(dataset, threshold=3)


ROW_BY_ROW = {pair: function for pair, function in CONVERSIONS.items() if function is not ratings_to_pairs}


@pytest.mark.parametrize(("pair", "function"), ROW_BY_ROW.items(), ids=map("_to_".join, ROW_BY_ROW))
def test_each_row_is_converted_by_itself_and_in_its_place(pair, function):
    options = {"ratings_to_unpaired": {"threshold": 1.5}, "objectives_to_ratings": {"weights": {"x": 1.0}}}

    def converted(dataset):
        made = function(dataset, **options.get(function.__name__, {}))
        return made.remove_columns([name for name in made.column_names if name == "source_row"]).to_list()

    dataset = rows(**GOOD[pair[0]])
    first, second = converted(dataset.select([0])), converted(dataset.select([1]))
    assert converted(dataset) == first + second
    assert converted(dataset.select([1, 0])) == second + first
