"""Labels by rewards: what they say, how sure they are, what is written, and that it is feedback again."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset

from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.reward_modeling.uses.confidence import (
    DoubtArguments,
    choose_method,
    curve_for,
    draw_line,
    held_out,
    is_right,
    reasons,
    verdicts,
)
from rlhf_recipes.reward_modeling.uses.labeling import (
    accuracy_of,
    counts,
    evidence_of,
    groups_of,
    known_labels,
    known_rows,
    labelled_rows,
    read_rows,
    sides_of,
    summary,
    warn_of_ratings,
    write_labelled,
)
from rlhf_recipes.reward_modeling.uses.thresholds import Sigmoid
from rlhf_recipes.rewards import LearnedReward, LogisticCalibration, RewardModelSettings, WeightedSum
from tests.tiny import tiny_classifier, tiny_tokenizer


def marks(completions, **kwargs):
    """Exclamation marks less question marks."""
    return [float(text.count("!") - text.count("?")) for text in completions]


def twice(completions, **kwargs):
    return [2 * value for value in marks(completions)]


def contrary(completions, **kwargs):
    return [-value for value in marks(completions)]


MARKS = WeightedSum([marks])
TEXTS = Dataset.from_dict({"completion": ["a!", "b?", " ", "c", "d!!!"], "page": [1, 2, 3, 4, 5]})
PAIRS = Dataset.from_dict({"first": ["a!", "b?", "c"], "second": ["a", "b!!", "d"], "prompt": ["p", "q", "r"]})


def label(dataset, rewards=MARKS, threshold=0.0, label_as=None, ensemble=False, min_agreement=0.0, method="sigmoid"):
    evidence = evidence_of(rewards, dataset, ensemble)
    pairs = len(sides_of(dataset)) == 2
    found = verdicts(evidence, method, Sigmoid())
    why = reasons(found, threshold, min_agreement)
    return labelled_rows(dataset, evidence, found, why, label_as or ("pairs" if pairs else "unpaired"), ensemble)


# ---- what the rewards say


def test_texts_have_their_score_and_blank_ones_none():
    evidence = evidence_of(MARKS, TEXTS)
    assert evidence.x.tolist() == pytest.approx([1.0, -1.0, math.nan, 0.0, 3.0], nan_ok=True)


def test_pairs_have_the_difference():
    evidence = evidence_of(MARKS, PAIRS)
    assert evidence.x.tolist() == [1.0, -3.0, 0.0]
    assert [side.tolist() for side in evidence.scores] == [[1.0, -1.0, 0.0], [0.0, 2.0, 0.0]]


def test_an_ensemble_is_a_mean_and_other_rewards_a_sum():
    rewards = WeightedSum([marks, twice])
    assert evidence_of(rewards, PAIRS).x.tolist() == [3.0, -9.0, 0.0]
    evidence = evidence_of(rewards, PAIRS, ensemble=True)
    assert evidence.x.tolist() == [1.5, -4.5, 0.0]
    assert evidence.members.tolist() == [[1.0, -3.0, 0.0], [2.0, -6.0, 0.0]]


def test_one_reward_is_no_ensemble():
    with pytest.raises(ValueError, match="two rewards or more"):
        evidence_of(MARKS, TEXTS, ensemble=True)


def test_rewards_are_given_prompts_and_columns():
    seen = {}

    def reward(prompts, completions, page, **kwargs):
        seen.update(prompts=prompts, page=page)
        return [0.0] * len(completions)

    evidence_of(WeightedSum([reward]), TEXTS.add_column("prompt", ["p", None, "r", "s", "t"]))
    assert seen == {"prompts": ["p", "", "s", "t"], "page": [1, 2, 4, 5]}  # without the row of the blank text


def test_many_rows_are_scored_in_parts():
    rows = Dataset.from_dict({"completion": ["!" * number for number in range(1, 11)]})
    calls = []

    def reward(completions, **kwargs):
        calls.append(len(completions))
        return marks(completions)

    assert evidence_of(WeightedSum([reward]), rows, chunk_size=4).x.tolist() == list(range(1, 11))
    assert calls == [4, 4, 2]


def test_rows_without_texts_are_refused():
    with pytest.raises(ValueError, match="'completion', or 'chosen' and 'rejected', or 'first' and 'second'"):
        sides_of(Dataset.from_dict({"line": ["a"]}))
    with pytest.raises(ValueError, match="All 1 rows have a blank text"):
        evidence_of(MARKS, Dataset.from_dict({"completion": [" "]}))


@pytest.mark.parametrize(
    ("calibrate", "method", "warns"), [(True, "sigmoid", True), (False, "sigmoid", False), (True, "fitted", False)]
)
def test_ratings_that_are_taken_for_logits_are_told_of(caplog, calibrate, method, warns):
    tokenizer = tiny_tokenizer("bert")
    settings = RewardModelSettings(calibration=LogisticCalibration(1.0, 0.0))
    model = tiny_classifier(tokenizer)
    reward = LearnedReward(model, tokenizer, name="rater", calibrate=calibrate, settings=settings)
    warn_of_ratings(WeightedSum([reward]), method)
    assert ("rater gives calibrated ratings" in caplog.text) == warns


# ---- labels that there are


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"completion": ["a", "b", "c"], "score": [2.0, 0.0, -1.0]}, {0: 1.0, 1: 1.0, 2: 0.0}),
        ({"completion": ["a", "b", "c"], "label": [0.0, None, 0.7]}, {0: 0.0, 2: 0.7}),
        ({"completion": ["a", "b"], "clicks": [1, 9], "views": [10, 10]}, {0: 0.1, 1: 0.9}),
        ({"chosen": ["a", "b", "c"], "rejected": ["x", "b", "z"]}, {0: 1.0, 2: 1.0}),
        ({"chosen": ["a", "b"], "rejected": ["x", "y"], "target": [0.9, 0.2]}, {0: 0.9, 1: 0.2}),
        ({"chosen": ["a"], "rejected": ["x"], "chosen_votes": [3], "rejected_votes": [1]}, {0: 0.75}),
    ],
)
def test_labels_of_every_format_by_row(columns, expected):
    assert known_labels(Dataset.from_dict(columns), 0.0) == pytest.approx(expected)


def test_labelled_rows_are_parted_by_their_text_and_scored():
    rows = Dataset.from_dict({"completion": [f"text {i}!" for i in range(100)], "label": [0, 1] * 50})
    known = known_rows(MARKS, rows, 0.0, fit_share=0.5)
    assert sorted([*known.for_fitting, *known.for_looking]) == list(range(100))
    assert 30 < len(known.for_fitting) < 70
    turned = known_rows(MARKS, rows.select(range(99, -1, -1)), 0.0, fit_share=0.5)
    assert {99 - row for row in turned.for_fitting} == set(known.for_fitting)
    assert known_rows(MARKS, rows, 0.0, fit_share=0.0).for_fitting == []
    assert known_rows(MARKS, rows, 0.0, fit_share=1.0).for_looking == []


# ---- how sure


def test_the_preference_of_bradley_and_terry():
    found = verdicts(evidence_of(MARKS, PAIRS), "sigmoid", Sigmoid())
    assert found.probability.tolist() == pytest.approx([0.7310586, 0.0474259, 0.5])
    assert found.confidence.tolist() == pytest.approx([0.7310586, 0.9525741, 0.5])


def test_agreement_is_the_share_of_the_members_on_that_side():
    evidence = evidence_of(WeightedSum([marks, twice, contrary]), PAIRS, ensemble=True)
    found = verdicts(evidence, "agreement", Sigmoid())
    assert found.probability.tolist() == pytest.approx([2 / 3, 1 / 3, 0.5])
    assert found.agreement.tolist() == pytest.approx([2 / 3, 2 / 3, 0.5])
    assert found.spread.tolist() == pytest.approx(np.std([[1, 2, -1], [-3, -6, 3], [0, 0, 0]], axis=1).tolist())


def test_the_boundary_of_texts_is_that_of_the_curve():
    evidence = evidence_of(WeightedSum([marks, twice]), TEXTS.select([0]), ensemble=True)  # members say 1 and 2
    assert verdicts(evidence, "sigmoid", Sigmoid(1.0, -1.25)).agreement.tolist() == [0.5]


def test_why_a_row_gets_no_label():
    evidence = evidence_of(WeightedSum([marks, contrary], [2.0, 1.0]), TEXTS, ensemble=True)
    found = verdicts(evidence, "sigmoid", Sigmoid())
    # the means are 1/3, -1/3, none, 0 and 1: confidences of 0.58, 0.58, none, 0.5 and 0.73
    assert reasons(found, 0.6, 0.0) == ["not sure enough", "not sure enough", "blank text", "a tie", None]
    assert reasons(found, 0.5, 0.9)[0] == "members disagree"
    assert reasons(found, 0.5, 0.5)[0] is None


@pytest.mark.parametrize(
    ("asked", "pairs", "labelled", "method"),
    [(None, False, True, "fitted"), (None, True, False, "sigmoid"), ("agreement", False, False, "agreement")],
)
def test_the_way_to_a_probability(asked, pairs, labelled, method):
    assert choose_method(asked, pairs, labelled) == method


def test_single_texts_need_labels_or_a_word():
    with pytest.raises(ValueError, match="validation_split"):
        choose_method(None, pairs=False, labelled=False)
    with pytest.raises(ValueError, match="'fitted' needs labelled rows"):
        choose_method("fitted", pairs=True, labelled=False)


def test_the_curve_of_a_logit_crosses_at_the_decision_threshold():
    assert curve_for(evidence_of(MARKS, TEXTS), {}, [], "sigmoid", 2.0).boundary == 2.0
    assert curve_for(evidence_of(MARKS, PAIRS), {}, [], "sigmoid", 2.0).boundary == 0.0  # pairs know no threshold


def test_right_and_wrong_leave_out_what_takes_no_side():
    right, rows = is_right(np.array([0.9, 0.2, 0.5, 0.8, np.nan]), [1.0, 0.7, 1.0, 0.5, 1.0])
    assert (right.tolist(), rows) == ([1.0, 0.0], [0, 1])


def test_rows_that_are_refused_count_in_the_total():
    evidence = evidence_of(WeightedSum([marks, contrary], [2.0, 1.0]), TEXTS, ensemble=True)
    found = verdicts(evidence, "sigmoid", Sigmoid())
    labels = {0: 1.0, 1: 1.0, 2: 1.0, 4: 0.5}
    held = held_out(found, labels, sorted(labels))
    assert (held.right.tolist(), held.total) == ([1.0, 0.0], 3)  # row 2 is blank, row 4 undecided
    with pytest.raises(ValueError, match="None of 4 labelled rows is left"):
        held_out(found, labels, sorted(labels), min_agreement=0.9)


# ---- the line


def noisy(rows, seed=0):
    """Texts with -5 to 5 marks, good with a probability that rises with them."""
    generator = np.random.default_rng(seed)
    count = generator.integers(-5, 6, rows)
    good = generator.random(rows) < 1 / (1 + np.exp(-count))
    texts = [f"{number} {'!' * max(mark, 0)}{'?' * max(-mark, 0)}" for number, mark in enumerate(count)]
    return Dataset.from_dict({"completion": texts, "label": good.astype(float)})


def line_of(rows=800, **options):
    args = DoubtArguments(validation_split="validation", **options)
    known = known_rows(MARKS, noisy(rows), 0.0, args.fit_share)
    return draw_line(args, evidence_of(MARKS, noisy(300, seed=1)), known)


def test_a_threshold_is_chosen_on_rows_that_nothing_was_fitted_to():
    line = line_of(wanted_accuracy=0.9)
    assert line.method == "fitted"
    assert line.sigmoid.scale == pytest.approx(1.0, abs=0.4)
    assert line.choice.bound >= 0.9
    assert line.threshold == line.choice.threshold
    assert 600 < line.curve[-1].rows <= 800
    figures = line.figures()
    assert figures["temperature"] == pytest.approx(1 / line.sigmoid.scale)
    assert figures["wanted_accuracy"] == 0.9
    assert "at least 0.9" in str(line)


def test_without_a_wanted_accuracy_the_given_threshold_stays():
    line = line_of(threshold=0.7)
    assert (line.threshold, line.choice) == (0.7, None)
    assert str(line) == "Labels from a confidence of 0.700 on."
    assert line.figures()["threshold"] == 0.7


def test_rows_that_were_all_fitted_to_guarantee_nothing():
    with pytest.raises(ValueError, match="fit_share is 1"):
        line_of(wanted_accuracy=0.9, fit_share=1.0)
    line = line_of(wanted_accuracy=0.9, fit_share=1.0, guarantee=0.0)
    assert line.choice.point.accuracy >= 0.9
    assert "nothing is guaranteed" in str(line)


def test_a_sigmoid_that_is_not_fitted_is_looked_at_on_all_rows():
    line = line_of(wanted_accuracy=0.9, confidence="sigmoid")
    assert line.sigmoid == Sigmoid()
    assert line.curve[-1].rows > 700  # all but those without a mark


@pytest.mark.parametrize(
    "options",
    [{"wanted_accuracy": 0.9}, {"wanted_accuracy": 0.9, "validation_split": "v", "threshold": 0.7}, {"threshold": 2}],
)
def test_settings_that_do_not_fit_together(options):
    with pytest.raises(ValueError, match="validation_split|from 0 to 1"):
        DoubtArguments(**options)


# ---- what is written


def test_unpaired_labels_by_hand():
    made = label(TEXTS, threshold=0.8)
    assert made["label"] == [None, None, None, None, 1.0]
    assert made["abstained"] == [True, True, True, True, False]
    assert made["reason"] == ["not sure enough", "not sure enough", "blank text", "a tie", None]
    assert made["model_score"] == [1.0, -1.0, None, 0.0, 3.0]
    assert made["confidence"][4] == pytest.approx(0.9525741)
    assert made["page"] == [1, 2, 3, 4, 5]


def test_the_better_of_a_pair_becomes_the_chosen_one():
    made = label(PAIRS)
    assert made["chosen"] == ["a!", "b!!", "c"]
    assert made["rejected"] == ["a", "b?", "d"]
    assert made["swapped"] == [False, True, False]
    assert made["target"] == [pytest.approx(0.7310586), pytest.approx(0.9525741), None]
    assert made["chosen_score"] == [1.0, 2.0, 0.0]
    assert "first" not in made.column_names


def test_what_people_said_is_kept_beside_it():
    made = label(Dataset.from_dict({"completion": ["a!", "b?"], "score": [3.0, 1.0], "votes": [[3], [1]]}))
    assert made["given_score"] == [3.0, 1.0]
    assert {"score", "votes"}.isdisjoint(made.column_names)
    with pytest.raises(ValueError, match="'given_score', which there is already"):
        label(Dataset.from_dict({"completion": ["a!"], "score": [1.0], "given_score": [1.0]}))


def test_texts_are_not_labelled_as_pairs():
    with pytest.raises(ValueError, match="cannot be labelled as pairs"):
        label(TEXTS, label_as="pairs")
    with pytest.raises(ValueError, match="cannot be labelled as ratings"):
        label(PAIRS, label_as="ratings")


def test_counts_leave_no_row_out():
    figures = counts(label(TEXTS, threshold=0.7), "unpaired")
    assert (figures["rows"], figures["labelled"], figures["abstained"]) == (5, 3, 2)
    assert figures["abstained_because"] == {"blank text": 1, "a tie": 1}
    assert (figures["good"], figures["bad"], figures["coverage"]) == (2, 1, 0.6)
    said = summary(figures)
    assert "3 of 5 rows labelled (60.0%), 2 not (1 blank text, 1 a tie)" in said
    assert counts(label(PAIRS), "pairs")["swapped"] == 1


def test_accuracy_is_told_where_people_have_labels():
    rows = TEXTS.add_column("score", [1.0, 1.0, 1.0, 1.0, -1.0])
    found = verdicts(evidence_of(MARKS, rows), "sigmoid", Sigmoid())
    figures = accuracy_of(found, reasons(found, 0.8), rows, 0.0)
    assert (figures["accuracy_rows"], figures["accuracy"]) == (1, 0.0)  # "d!!!" alone is labelled
    assert figures["accuracy_of_all"] == pytest.approx(1 / 3)
    assert accuracy_of(found, reasons(found, 0.8), TEXTS, 0.0) == {}


ROUND_TRIPS = [
    (TEXTS, "unpaired", {"label": [1.0, 0.0, 1.0]}),
    (TEXTS, "ratings", {"score": [1.0, -1.0, 3.0]}),
    (PAIRS, "pairs", {"chosen": ["a!", "b!!"], "rejected": ["a", "b?"], "prompt": ["p", "q"]}),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize(("dataset", "label_as", "expected"), ROUND_TRIPS, ids=[trip[1] for trip in ROUND_TRIPS])
def test_what_is_written_is_feedback_again(tmp_path, dataset, label_as, expected, suffix):
    made = label(dataset, label_as=label_as)
    file = write_labelled(tmp_path / f"labeled{suffix}", made)
    rows = load_rows(str(file), "train")
    assert len(rows) == len(dataset)
    assert recognize(rows).kind == label_as
    clean, check = normalize(rows)
    for name, values in expected.items():
        assert list(clean[name]) == values  # the rows without a label are left out, and counted
    assert sum(check.left_out.values()) >= len(dataset) - len(clean)
    if label_as == "pairs":
        assert list(clean["target"]) == pytest.approx([0.7310586, 0.9525741])


def test_messages_go_through_json_and_parquet_and_are_refused_by_csv(tmp_path):
    answer = [[{"role": "assistant", "content": text}] for text in ("a!", "b?")]

    def reward(completions, **kwargs):
        return marks([messages[0]["content"] for messages in completions])

    made = label(Dataset.from_dict({"completion": answer}), WeightedSum([reward]))
    for suffix in (".jsonl", ".parquet"):
        rows = load_rows(str(write_labelled(tmp_path / f"labeled{suffix}", made)), "train")
        assert normalize(rows)[0]["completion"] == answer
    with pytest.raises(ValueError, match="CSV cannot hold the column 'completion'"):
        write_labelled(tmp_path / "labeled.csv", made)
    with pytest.raises(ValueError, match=r"\.jsonl, \.csv, \.parquet"):
        write_labelled(tmp_path / "labeled.xlsx", made)
    assert not (tmp_path / "labeled.csv").exists()


def test_a_file_that_is_all_abstained_is_written_too(tmp_path):
    made = label(TEXTS, threshold=1.0)
    assert set(made["label"]) == {None}
    for suffix in (".jsonl", ".csv", ".parquet"):
        assert len(load_rows(str(write_labelled(tmp_path / f"labeled{suffix}", made)), "train")) == 5


def test_dialogues_with_their_prompt_inside_are_split(tmp_path):
    row = {
        "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!",
        "rejected": "\n\nHuman: Hello\n\nAssistant: What?",
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    rows = read_rows(str(tmp_path / "train.jsonl"), "train")
    assert rows["prompt"][0] == [{"role": "user", "content": "Hello"}]
    assert rows["chosen"][0][0]["content"] == "Hi!"


def test_labels_that_are_texts_are_refused():
    rows = Dataset.from_dict({"completion": ["a", "b"], "label": ["good", "bad"]})
    with pytest.raises(ValueError, match="label_map"):
        known_labels(rows, 0.0)


def test_rows_of_one_prompt_hang_together_and_without_prompts_rows_with_a_text_in_common():
    texts = Dataset.from_dict({"prompt": ["p", "q", " P ", "", ""], "completion": ["a", "b", "c", "d", "D"]})
    groups, keys = groups_of(texts)
    assert groups[0] == groups[2]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3
    assert keys[:3] == ["p", "q", "p"]
    pairs = Dataset.from_dict({"chosen": ["a", "b", "c"], "rejected": ["x", "a", "y"]})
    first, second, third = groups_of(pairs)[0]
    assert first == second != third  # "a" is in both
    answers = Dataset.from_dict({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["no", "no"]})
    assert len(set(groups_of(answers)[0])) == 2  # one refusal to many prompts does not tie them


def test_rows_of_one_prompt_are_on_one_side_and_count_together():
    rows = {"prompt": [f"p{row // 5}" for row in range(200)], "completion": [f"c{row}" for row in range(200)],
            "label": [row % 2 for row in range(200)]}  # fmt: skip
    reward = MARKS
    known = known_rows(reward, Dataset.from_dict(rows), 0.0, fit_share=0.3)
    assert known.groups == [row // 5 for row in range(200)]
    assert not {known.groups[row] for row in known.for_fitting} & {known.groups[row] for row in known.for_looking}
