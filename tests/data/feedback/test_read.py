"""Feedback: each format of the page is recognized, what is odd is counted or refused, and rows come out clean."""

import json
import logging
import re
from pathlib import Path

import pytest

from rlhf_recipes.data.feedback.__main__ import main
from rlhf_recipes.data.feedback.formats import COLUMNS, CONVERSIONS, FeedbackArguments, FeedbackSettings
from rlhf_recipes.data.feedback.read import check, convert, normalize, read_rows
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.data.loading import load_rows
from tests.data.feedback_examples import GOOD, assistant, rows, user, with_row

PAGE = (Path(__file__).parents[3] / "docs/feedback_formats.md").read_text()
EXAMPLES = re.findall(r"^### (\w+)(.*?)$.*?^```jsonl\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
NAN = float("nan")


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
    assert {kind for kind, _, _ in EXAMPLES} == set(COLUMNS)
    table = PAGE.split("## Conversions")[1]
    named = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert {(a, b): name for a, b, name in named} == {
        pair: function.__name__ for pair, function in CONVERSIONS.items()
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
        ({"completion": ["a"], "thumbs_up": [1]}, r"rename_column\('thumbs_up', 'label'\)"),
        ({"completion": ["a"], "time_on_page": [1]}, r"rename_column\('time_on_page', 'dwell_seconds'\)"),
        ({"completions": [["a"]], "ranking": [[1]]}, r"rename_column\('ranking', 'ranks'\)"),
        ({"responses": [["a"]], "ranks": [[1]]}, r"rename_column\('responses', 'completions'\)"),
        ({"completion": ["a"], "aspects": [{"x": 1}]}, r"rename_column\('aspects', 'scores'\)"),
        ({"completion": ["a"], "clicked": [1], "views": [1]}, r"rename_column\('clicked', 'clicks'\)"),
        ({"completion": []}, "no rows"),
    ],
)
def test_columns_of_no_format_say_what_is_near(columns, message):
    with pytest.raises(ValueError, match=message):
        recognize(rows(**columns))


# --- Prompts inside answers -------------------------------------------------------------------


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
        ("ratings", {"score": NAN}, "missing value"),
        ("votes", {"chosen_votes": NAN}, "missing votes"),
        ("unpaired", {"label": NAN}, "missing value"),
        ("objectives", {"scores": {"x": NAN, "y": NAN}}, "missing value"),
        ("steps", {"labels": [NAN, NAN]}, "missing value"),
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
        ("ratings", {"score": float("inf")}, "Row 2 of the ratings: score is inf, and must be a finite number"),
        ("rankings", {"ranks": [1, 2, 3]}, "2 completions and 3 ranks"),
        ("rankings", {"ranks": [0, 1]}, r"ranks\[0\] is 0; ranks are numbers from 1 \(best\)"),
        ("rankings", {"ranks": [1, None]}, r"ranks\[1\] is missing"),
        ("rankings", {"ranks": [1.0, NAN]}, r"ranks\[1\] is missing"),
        ("best_worst", {"best": 2}, "best is 2; it is a place in the list, from 0 to 1"),
        ("best_worst", {"worst": -1}, "worst is -1"),
        ("clicks", {"clicks": 6}, "6 clicks of 5 views"),
        ("clicks", {"clicks": -1}, "clicks is -1"),
        ("dwell", {"dwell_seconds": -3.0}, "dwell_seconds is -3"),
        ("steps", {"labels": [1.0]}, "2 steps and 1 labels"),
        ("unpaired", {"label": 2.0}, r"Labels must be .* column 'label' has .*2.0 \(1\)"),
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
    with pytest.raises(ValueError, match=r"'score' must hold numbers, .* as text, such as '4'.*cast_column\('score'"):
        check(rows(completion=["a", "b"], score=["4", "5"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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


# --- Converting -------------------------------------------------------------------------------


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


def test_options_of_a_conversion_are_checked():
    dataset = rows(completion=["a", "b"], score=[1, 5])
    with pytest.raises(ValueError, match="ratings_to_unpaired needs the option 'threshold'.*threshold, dead_zone"):
        convert(dataset, "unpaired")
    with pytest.raises(ValueError, match="ratings_to_unpaired has no option 'treshold'.*are: threshold, dead_zone"):
        convert(dataset, "unpaired", treshold=3)


def test_weights_are_read_like_feedback_and_survive_conversions():
    dataset = with_row("pairs").add_column("weight", [1, 2, 0])
    clean, found = normalize(dataset)
    assert found.format.columns == ("chosen", "rejected", "weight")
    assert clean["weight"][:] == [1.0, 2.0, 0.0]
    assert convert(dataset, "unpaired")[0]["weight"][:] == [1.0, 1.0, 2.0, 2.0, 0.0, 0.0]


# --- The command ------------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A folder with two splits of rankings."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = {
        "train": [{"completions": ["a", "b", "c"], "ranks": [1, 2, 3]}, {"completions": ["d", "e"], "ranks": [2, 1]}],
        "test": [{"completions": ["f", "g"], "ranks": [1, 2]}, {"completions": ["h", "i"], "ranks": [1, 1]}],
    }
    (tmp_path / "kit").mkdir()
    for name, of_split in lines.items():
        (tmp_path / "kit" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_split)))
    return tmp_path / "kit"


def test_the_command_says_what_each_split_is_and_writes_nothing(kit, capsys):
    main(["--dataset_name", str(kit)])
    assert capsys.readouterr().out == (
        "train: rankings (completions, ranks; text, without prompt): 2 to 3 completions a row; ties in 0 of 2 rows\n"
        "2 of 2 rows can be used.\n"
        "test: rankings (completions, ranks; text, without prompt): 2 completions a row; ties in 1 of 2 rows\n"
        "1 of 2 rows can be used.\n"
        "  left out        1  all ranks tied\n"
    )


def test_the_command_converts_and_writes_a_dataset(kit, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--convert_args", '{"which": "adjacent"}', "--weights", "groups", "--output_format", "parquet"]
    main(["--dataset_name", str(kit), "--convert_to", "pairs", *options, "--output_dir", str(out)])
    pairs = load_rows(str(out), "train")
    assert [*zip(pairs["chosen"], pairs["rejected"], strict=True)] == [("a", "b"), ("b", "c"), ("e", "d")]
    assert pairs["weight"][:] == pytest.approx([0.75, 0.75, 1.5])
    assert len(load_rows(str(out), "test")) == 1
    facts = json.loads((out / "feedback.json").read_text())
    assert facts["test"] == {
        "format": "rankings (completions, ranks; text, without prompt): 2 completions a row; ties in 1 of 2 rows",
        "rows": 2,
        "kept": 1,
        "left_out": {"all ranks tied": 1},
        "noted": {},
        "written": 1,
    }
    said = capsys.readouterr().out
    assert "converted       3  rows of pairs (chosen, rejected, weight; text, without prompt)" in said
    assert "weights      0.75  to 1.5, 1 on average" in said
    assert "test.parquet" in said


def test_votes_are_weighed_before_they_are_converted(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = rows(chosen=["a", "c"], rejected=["b", "d"], chosen_votes=[3, 0], rejected_votes=[1, 2])
    read = read_rows(dataset, FeedbackArguments(weights="votes", convert_to="pairs"))
    made = read.rows
    assert (read.kind, read.check.format.kind) == ("pairs", "votes")
    assert made["chosen"][:] == ["a", "d"]
    assert made["weight"][:] == pytest.approx([(16 / 7) / (68 / 35), (8 / 5) / (68 / 35)])  # as in test_weights.py
    rated = rows(completion=["a", "b"], score=[1, 5], votes=[[1, 1], [5, 4]])
    with pytest.raises(ValueError, match="ratings become pairs without their weights"):
        read_rows(rated, FeedbackArguments(weights="votes", convert_to="pairs"))


def test_an_error_of_the_command_names_the_split(kit, capsys):
    (kit / "test.jsonl").write_text('{"completions": ["f", "g"], "ranks": [1]}\n')
    with pytest.raises(ValueError, match="Split 'test': Row 0 of the rankings: there are 2 completions and 1 ranks"):
        main(["--dataset_name", str(kit)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert_to": "stars"}, "convert_to is 'stars'; give one of pairs"),
        ({"convert_args": {"passes": 2}}, "convert_args is given without convert_to"),
        ({"score_range": [1.0]}, "give two numbers"),
        ({"weights": "length"}, "weights is 'length'; give one of votes, labels, groups"),
        ({"feedback_format": "x"}, "format is 'x'"),
    ],
)
def test_options_of_the_command_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        FeedbackArguments(**options)


def test_a_yes_that_yaml_took_for_true_is_explained():
    labels = rows(completion=["a", "b"], label=["yes", "no"])
    with pytest.raises(ValueError, match="It has True, False. In YAML yes, no, on and off are true and false"):
        check(labels, FeedbackSettings(label_map={True: 1, False: 0}))
