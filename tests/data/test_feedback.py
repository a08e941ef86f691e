"""Feedback: each format of the page is recognized, what is odd is counted or refused, and conversions by hand."""

import logging
import re
from pathlib import Path

import pytest
from datasets import Dataset

from rlhf_recipes.data import feedback
from rlhf_recipes.data.feedback import (
    FeedbackSettings,
    best_worst_to_pairs,
    check,
    clicks_to_unpaired,
    convert,
    dwell_to_unpaired,
    normalize,
    objectives_to_ratings,
    pairs_to_unpaired,
    rankings_to_pairs,
    rankings_to_ratings,
    ratings_to_pairs,
    ratings_to_unpaired,
    recognize,
    split_dialogue,
    steps_to_ratings,
    votes_to_pairs,
)
from rlhf_recipes.data.formats import load_rows

PAGE = (Path(__file__).parents[2] / "docs/feedback_formats.md").read_text()
EXAMPLES = re.findall(r"^### (\w+)(.*?)$.*?^```jsonl\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
NAN = float("nan")


def rows(**columns):
    return Dataset.from_dict(columns)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# --- Recognizing ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "title", "lines"), EXAMPLES, ids=[kind + title for kind, title, _ in EXAMPLES])
def test_the_examples_of_the_page_load_as_what_they_are_called(kind, title, lines, tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines)
    dataset = load_rows(str(tmp_path / "rows.jsonl"), "train")
    assert recognize(dataset).kind == kind
    clean, found = normalize(dataset)
    assert (len(clean), found.left_out) == (2, {})
    assert recognize(clean).kind == kind
    if "dialogues" in title or "inside" in title:
        assert clean.column_names == ["prompt", "chosen", "rejected"]


def test_the_page_has_every_format_and_every_conversion():
    assert {kind for kind, _, _ in EXAMPLES} == set(feedback.COLUMNS)
    table = PAGE.split("## Conversions")[1]
    named = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert {(a, b): name for a, b, name in named} == {
        pair: function.__name__ for pair, function in feedback.CONVERSIONS.items()
    }


def test_a_format_is_one_line_with_words_on_its_values():
    said = str(recognize(rows(prompt=["a", "b"], completion=["x", "y"], score=[1, 5], id=[7, 8])))
    assert said == "ratings (completion, score; text, with prompt): 1..5 whole numbers: ordinal"
    assert "-0.5..3.25: continuous" in str(recognize(rows(completion=["x", "y"], score=[-0.5, 3.25])))
    ranked = rows(completions=[["a", "b"], ["a", "b", "c"]], ranks=[[1, 1], [1, 2, 3]])
    assert recognize(ranked).notes == ("2 to 3 completions a row", "ties in 1 of 2 rows")
    assert recognize(rows(completion=["x"], label=[0.25])).notes == ("labels from 0 to 1: soft",)
    assert "label_map" in recognize(rows(completion=["x"], label=["good"])).notes[0]
    assert recognize(rows(completion=["x"], scores=[{"a": 1, "b": 2}])).notes == ("objectives a, b",)


def test_answers_of_messages_are_seen_in_lists_too():
    listed = rows(completions=[[[assistant("a")], [assistant("b")]]], ranks=[[1, 2]])
    assert recognize(listed).conversational
    assert not recognize(rows(completions=[["a", "b"]], ranks=[[1, 2]])).conversational


def test_votes_are_pairs_with_more_and_columns_for_two_formats_are_an_error():
    votes = rows(chosen=["a"], rejected=["b"], chosen_votes=[1], rejected_votes=[0])
    assert recognize(votes).kind == "votes"
    assert recognize(votes, format="pairs").kind == "pairs"
    both = rows(completion=["a", "b"], score=[1, 2], label=[True, False])
    with pytest.raises(ValueError, match=r"ratings \(completion, score\) and unpaired .* format='ratings' or format="):
        recognize(both)
    assert recognize(both, format="unpaired").kind == "unpaired"
    with pytest.raises(ValueError, match=r"format is 'stars'; give one of pairs, votes"):
        recognize(both, format="stars")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"completion": ["a"], "rating": [1]}, r"rename_column\('rating', 'score'\)"),
        ({"chosen": ["a"], "loser": ["b"]}, r"needs the columns 'chosen' and 'rejected'.*rename_column\('loser'"),
        ({"chosen": ["a"], "rejected": ["b"], "chosen_votes": [1]}, "not the votes of the other side"),
        ({"text": ["a"]}, "The dataset has: text"),
        ({"completion": []}, "no rows"),
    ],
)
def test_columns_of_no_format_say_what_is_near(columns, message):
    with pytest.raises(ValueError, match=message):
        recognize(rows(**columns))


# --- Prompts inside answers -------------------------------------------------------------------


def test_a_dialogue_is_split_into_turns():
    text = "\n\nHuman: Hi, Assistant: are you there?\n\nAssistant: Yes.\n\nSo?\n\nHuman: Bye\n\nAssistant:"
    assert split_dialogue(text) == [
        user("Hi, Assistant: are you there?"),
        assistant("Yes.\n\nSo?"),
        user("Bye"),
        assistant(""),
    ]
    assert split_dialogue("Human: a\n\nAssistant: b") == [user("a"), assistant("b")]
    for other in ("", "Hello", "\n\nHuman: alone", "\n\nAssistant: a\n\nHuman: b", "x\n\nHuman: a\n\nAssistant: b"):
        assert split_dialogue(other) == []


HEAD = "\n\nHuman: 1+1?\n\nAssistant: 2\n\nHuman: Sure?"


def test_raw_dialogues_become_a_prompt_and_two_answers():
    dataset = rows(
        chosen=[f"{HEAD}\n\nAssistant: Yes.", "\n\nHuman: a\n\nAssistant: b"],
        rejected=[f"{HEAD}\n\nAssistant: No.", "\n\nHuman: a\n\nAssistant: c"],
        id=[1, 2],
    )
    assert recognize(dataset).inside == "dialogues"
    clean, found = normalize(dataset)
    assert clean[0] == {
        "prompt": [user("1+1?"), assistant("2"), user("Sure?")],
        "chosen": [assistant("Yes.")],
        "rejected": [assistant("No.")],
        "id": 1,
    }
    assert (found.left_out, found.noted) == ({}, {})


def test_broken_dialogues_are_counted_by_what_is_broken():
    dataset = rows(
        chosen=[
            "\n\nHuman: a\n\nAssistant: b",
            "\n\nHuman: a\n\nAssistant: b",  # another question
            "\n\nHuman: a\n\nAssistant: b",  # no dialogue
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",  # no answer
            "\n\nHuman: a\n\nAssistant: b",  # an empty answer
            "\n\nHuman: a\n\nAssistant: b",  # the same
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",  # parts early
            "",
        ],
        rejected=[
            "\n\nHuman: a\n\nAssistant: c",
            "\n\nHuman: z\n\nAssistant: c",
            "Nothing to see.",
            "\n\nHuman: a\n\nAssistant: c",
            "\n\nHuman: a\n\nAssistant:",
            "\n\nHuman: a\n\nAssistant: b",
            "\n\nHuman: a\n\nAssistant: other\n\nHuman: c\n\nAssistant: e",
            "\n\nHuman: a\n\nAssistant: c",
        ],
    )
    clean, found = normalize(dataset)
    assert found.kept == [0, 6]
    assert found.left_out == {
        "no common beginning": 1,
        "no dialogue of Human and Assistant": 1,
        "no answer at the end": 1,
        "empty text": 2,
        "identical chosen and rejected": 1,
    }
    assert found.noted == {"the two part before the last answer": 1}
    assert clean[1]["chosen"] == [assistant("b"), user("c"), assistant("d")]
    assert "2 of 8 rows can be used" in str(found)
    assert "left out        2  empty text" in str(found)


def test_messages_with_the_prompt_inside_are_split_and_those_without_are_not():
    shared = [{"role": "system", "content": "s"}, user("q")]
    inside = rows(chosen=[[*shared, assistant("a")]], rejected=[[*shared, assistant("b")]])
    clean, _ = normalize(inside)
    assert clean[0] == {"prompt": shared, "chosen": [assistant("a")], "rejected": [assistant("b")]}
    alone = rows(chosen=[[assistant("a")]], rejected=[[assistant("b")]])
    assert normalize(alone)[0].to_list() == alone.to_list()
    assert not recognize(alone).has_prompt


def test_a_prompt_column_that_the_answers_repeat_is_told_once():
    dataset = rows(
        prompt=["q", "r"],
        chosen=[[user("q"), assistant("a")], [assistant("c")]],
        rejected=[[user("q"), assistant("b")], [assistant("d")]],
    )
    clean, _ = normalize(dataset)
    assert clean.to_list() == [
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("r")], "chosen": [assistant("c")], "rejected": [assistant("d")]},
    ]


def test_texts_that_only_mention_a_human_stay_as_they_are():
    dataset = rows(chosen=["Human: nobody", "b"], rejected=["a", "c"])
    assert normalize(dataset)[0].to_list() == dataset.to_list()


# --- Checks -----------------------------------------------------------------------------------

GOOD = {
    "pairs": {"chosen": ["a", "c"], "rejected": ["b", "d"]},
    "votes": {"chosen": ["a", "c"], "rejected": ["b", "d"], "chosen_votes": [3, 1], "rejected_votes": [1, 3]},
    "ratings": {"completion": ["a", "b"], "score": [1.0, 2.0]},
    "rankings": {"completions": [["a", "b"], ["c", "d", "e"]], "ranks": [[1, 2], [2, 1, 3]]},
    "best_worst": {"completions": [["a", "b"], ["c", "d", "e"]], "best": [0, 1], "worst": [1, 0]},
    "unpaired": {"completion": ["a", "b"], "label": [1.0, 0.0]},
    "clicks": {"completion": ["a", "b"], "clicks": [1, 2], "views": [5, 5]},
    "dwell": {"completion": ["a", "b"], "dwell_seconds": [1.0, 60.0]},
    "objectives": {"completion": ["a", "b"], "scores": [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}]},
    "steps": {"completions": [["a", "b"], ["c"]], "labels": [[1.0, 0.0], [1.0]]},
}


def with_row(kind, **values):
    """Two good rows, and a third that differs from the first in some columns."""
    columns = {name: list(column) for name, column in GOOD[kind].items()}
    return rows(**{name: [*column, values.get(name, column[0])] for name, column in columns.items()})


@pytest.mark.parametrize("kind", GOOD)
def test_good_rows_pass_and_come_back_unchanged(kind):
    dataset = rows(**GOOD[kind])
    clean, found = normalize(dataset)
    assert (found.left_out, found.noted, found.kept) == ({}, {}, [0, 1])
    assert clean.to_list() == dataset.to_list()


@pytest.mark.parametrize(
    ("kind", "values", "why"),
    [
        ("pairs", {"chosen": "  "}, "empty text"),
        ("pairs", {"chosen": "\u200b"}, "empty text"),
        ("pairs", {"rejected": None}, "empty text"),
        ("pairs", {"chosen": "b"}, "identical chosen and rejected"),
        ("votes", {"chosen": "b"}, "identical chosen and rejected"),
        ("votes", {"chosen_votes": None}, "missing votes"),
        ("votes", {"chosen_votes": 0, "rejected_votes": 0}, "missing votes"),
        ("ratings", {"score": None}, "missing value"),
        ("ratings", {"completion": ""}, "empty text"),
        ("rankings", {"completions": ["a"], "ranks": [1]}, "fewer than two completions"),
        ("rankings", {"completions": [], "ranks": []}, "fewer than two completions"),
        ("rankings", {"completions": None, "ranks": None}, "empty text"),
        ("rankings", {"completions": ["a", " "]}, "empty text"),
        ("rankings", {"ranks": [1, 1]}, "all ranks tied"),
        ("best_worst", {"best": 1}, "best and worst are the same"),
        ("best_worst", {"best": None}, "missing value"),
        ("unpaired", {"label": None}, "missing value"),
        ("clicks", {"clicks": 0, "views": 0}, "never shown"),
        ("clicks", {"views": None}, "missing value"),
        ("dwell", {"dwell_seconds": None}, "missing value"),
        ("objectives", {"scores": {"x": None, "y": None}}, "missing value"),
        ("objectives", {"scores": None}, "missing value"),
        ("steps", {"completions": [], "labels": []}, "missing value"),
        ("steps", {"labels": [None, None]}, "missing value"),
        ("steps", {"completions": ["a", ""]}, "empty text"),
    ],
)
def test_rows_that_say_nothing_are_left_out_and_counted(kind, values, why):
    found = check(with_row(kind, **values))
    assert (found.left_out, found.kept) == ({why: 1}, [0, 1])


@pytest.mark.parametrize(
    ("kind", "values", "what"),
    [
        ("pairs", {"chosen": "x" * 50_000}, "very long text"),
        ("votes", {"chosen_votes": 1}, "tie"),
        ("rankings", {"completions": ["a", "b", "c"], "ranks": [1, 1, 2]}, "ties"),
        ("rankings", {"completions": ["a", "a"]}, "identical completions"),
        ("objectives", {"scores": {"x": 1.0, "y": None}}, "an objective without a score"),
        ("steps", {"labels": [1.0, None]}, "a step without a label"),
    ],
)
def test_what_is_odd_is_kept_and_counted(kind, values, what):
    dataset = with_row(kind, **values)
    clean, found = normalize(dataset)
    assert (found.noted, found.left_out, found.kept) == ({what: 1}, {}, [0, 1, 2])
    assert clean.to_list() == dataset.to_list()


def test_texts_of_49_999_characters_are_not_long_and_the_limit_can_be_set():
    assert check(with_row("pairs", chosen="x" * 49_999)).noted == {}
    assert check(with_row("pairs", chosen="xxx"), FeedbackSettings(long_text=3)).noted == {"very long text": 1}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("votes", {"chosen_votes": -1}, "Row 2 of the votes: chosen_votes is -1; it must be 0 or more"),
        ("votes", {"chosen_votes": NAN}, "chosen_votes is nan"),
        ("ratings", {"score": NAN}, "Row 2 of the ratings: score is nan, and must be a finite number"),
        ("ratings", {"score": float("inf")}, "score is inf"),
        ("rankings", {"ranks": [1, 2, 3]}, "2 completions and 3 ranks"),
        ("rankings", {"ranks": [0, 1]}, r"ranks\[0\] is 0; ranks are numbers from 1 \(best\)"),
        ("rankings", {"ranks": [1, None]}, r"ranks\[1\] is missing"),
        ("rankings", {"ranks": [1.0, NAN]}, r"ranks\[1\] is nan"),
        ("best_worst", {"best": 2}, "best is 2; it is a place in the list, from 0 to 1"),
        ("best_worst", {"worst": -1}, "worst is -1"),
        ("clicks", {"clicks": 6}, "6 clicks of 5 views"),
        ("clicks", {"clicks": -1}, "clicks is -1"),
        ("dwell", {"dwell_seconds": -3.0}, "dwell_seconds is -3"),
        ("objectives", {"scores": {"x": NAN, "y": 1.0}}, "scores.x is nan"),
        ("steps", {"labels": [1.0]}, "2 steps and 1 labels"),
        ("unpaired", {"label": 2.0}, r"Labels must be .* column 'label' has .*2.0 \(1\)"),
        ("unpaired", {"label": NAN}, r"nan \(1\)"),
        ("steps", {"labels": [1.0, -1.0]}, r"column 'labels' has -1.0 \(1\)"),
    ],
)
def test_what_is_wrong_is_refused_with_the_row_or_the_values(kind, values, message):
    with pytest.raises(ValueError, match=message):
        check(with_row(kind, **values))


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("ratings", {"completion": ["a", "b"], "score": [3, 3]}),
        ("unpaired", {"completion": ["a", "b"], "label": [True, True]}),
        ("unpaired", {"completion": ["a", " "], "label": [True, False]}),  # the other class is left out
        ("steps", {"completions": [["a"], ["b"]], "labels": [[True], [True]]}),
        ("dwell", {"completion": ["a", "b"], "dwell_seconds": [3.0, 3.0]}),
    ],
)
def test_one_class_only_is_refused(kind, columns):
    with pytest.raises(ValueError, match="one class only: in all . rows"):
        check(rows(**columns))


def test_no_row_left_is_refused_with_the_counts():
    with pytest.raises(ValueError, match=r"None of the 2 rows of pairs .*: empty text \(1\), identical .* \(1\)"):
        check(rows(chosen=["", "a"], rejected=["b", "a"]))


def test_scores_outside_a_stated_range_are_refused():
    dataset = with_row("ratings", score=6.0)
    assert check(dataset).left_out == {}
    with pytest.raises(ValueError, match=r"score is 6, outside the score_range from 1 to 5"):
        check(dataset, FeedbackSettings(score_range=(1, 5)))
    with pytest.raises(ValueError, match=r"scores\.y is 2, outside"):
        check(rows(**GOOD["objectives"]), FeedbackSettings(score_range=(0, 1.5)))


@pytest.mark.parametrize("labels", [["good", "bad", "good"], ["1", "0", "1"], ["true", "false", "true"]])
def test_labels_as_texts_need_a_map_and_the_error_shows_them(labels):
    dataset = rows(completion=["a", "b", "c"], label=labels)
    with pytest.raises(ValueError, match=rf"'{labels[1]}' \(1\), '{labels[0]}' \(2\).*label_map="):
        check(dataset)
    clean, _ = normalize(dataset, FeedbackSettings(label_map={labels[0]: 1, labels[1]: 0}))
    assert clean["label"][:] == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=rf"does not say what these labels count: '{labels[1]}' \(1\)"):
        check(dataset, FeedbackSettings(label_map={labels[0]: 1}))


def test_labels_of_steps_and_numbers_are_mapped_too():
    # PRM800K's -1, 0 and 1
    dataset = rows(completions=[["a", "b"], ["c"]], labels=[[1, 0], [-1]])
    clean, _ = normalize(dataset, FeedbackSettings(label_map={1: 1, 0: 0.5, -1: 0}))
    assert clean["labels"][:] == [[1.0, 0.5], [0.0]]


def test_scores_as_texts_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"score is '4', a str.*cast_column\('score', Value\('float64'\)\)"):
        check(rows(completion=["a", "b"], score=["4", "5"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "x"}, "give one of"),
        ({"label_map": {"good": 2}}, "'good' 2; give a number from 0"),
        ({"score_range": (5, 1)}, "score_range"),
        ({"long_text": 0}, "1 or more characters"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        FeedbackSettings(**settings)


def test_margins_and_targets_are_read_and_a_missing_one_leaves_the_row_out():
    dataset = rows(chosen=["a", "b", "c"], rejected=["x", "y", "z"], margin=[1, None, -1], target=[0.5, 1.0, 0.75])
    clean, found = normalize(dataset)
    assert clean["margin"][:] == [1.0, -1.0]
    assert (found.left_out, found.noted) == ({"missing value": 1}, {"tie": 1})
    with pytest.raises(ValueError, match="target is 1.5"):
        check(rows(chosen=["a"], rejected=["b"], target=[1.5]))


def test_lists_of_scores_get_their_names_from_the_settings_or_the_column():
    dataset = rows(completion=["a", "b"], scores=[[1, 2], [3, None]])
    clean, _ = normalize(dataset, FeedbackSettings(objective_names=["x", "y"]))
    assert clean["scores"][:] == [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": None}]
    with pytest.raises(ValueError, match="a list without names"):
        check(dataset)
    with pytest.raises(ValueError, match=r"2 scores for 1 objectives \(x\)"):
        check(dataset, FeedbackSettings(objective_names=["x"]))


def test_ratings_without_votes_are_noted(caplog):
    dataset = rows(completion=["a", "b"], score=[1, 2], votes=[[1, None], None])
    with caplog.at_level(logging.INFO):
        clean, found = normalize(dataset)
    assert found.noted == {"a score without votes": 1}
    assert clean["votes"][:] == [[1, None], None]  # the place may be the rater
    assert "1 of 2 rows of feedback, kept: a score without votes" in caplog.text


def test_what_is_left_out_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        normalize(with_row("pairs", chosen=""))
    assert "Left out 1 of 3 rows of feedback: empty text" in caplog.text


# --- Conversions ------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="'all' or 'adjacent'"):
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
    with pytest.raises(ValueError, match="'implied' or 'extremes'"):
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
    with pytest.raises(ValueError, match="'mean', 'min', 'product' or 'last'"):
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


def test_convert_cleans_first_and_names_the_way():
    dataset = with_row("rankings", ranks=[1, 1])
    pairs, found = convert(dataset, "pairs", which="adjacent")
    assert [*zip(pairs["chosen"], pairs["rejected"], strict=True)] == [("a", "b"), ("d", "c"), ("c", "e")]
    assert found.left_out == {"all ranks tied": 1}
    same, _ = convert(dataset, "rankings")
    assert len(same) == 2
    with pytest.raises(ValueError, match="From rankings there is: pairs, ratings. Convert to pairs first"):
        convert(dataset, "unpaired")
    with pytest.raises(ValueError, match="From unpaired there is: none"):
        convert(rows(**GOOD["unpaired"]), "pairs")
    with pytest.raises(ValueError, match="rankings already, so which"):
        convert(dataset, "rankings", which="all")


def test_raw_dialogues_convert_in_one_call():
    dataset = rows(chosen=["\n\nHuman: a\n\nAssistant: b"], rejected=["\n\nHuman: a\n\nAssistant: c"])
    single, _ = convert(dataset, "unpaired")
    assert single.to_list() == [
        {"prompt": [user("a")], "completion": [assistant("b")], "label": True},
        {"prompt": [user("a")], "completion": [assistant("c")], "label": False},
    ]


def test_a_column_of_the_new_name_is_not_overwritten():
    dataset = rows(completion=["a", "b"], score=[1, 5], label=["x", "y"])
    with pytest.raises(ValueError, match="makes a column 'label', but the dataset has one"):
        ratings_to_unpaired(dataset, threshold=3)


ROW_BY_ROW = {pair: function for pair, function in feedback.CONVERSIONS.items() if function is not ratings_to_pairs}


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
