"""From rows to targets, counts and sums of losses: numbers worked out by hand."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.losses import LOSSES, choose_loss, make_objective
from rlhf_recipes.reward_modeling.losses.base import Batch


def batch_of(scores, targets, sizes=None):
    """Rows with as many texts as `sizes` says, one each by default."""
    sizes = sizes or [1] * len(scores)
    logits = torch.tensor(scores, dtype=torch.float32)
    logits = logits[:, None] if logits.ndim == 1 else logits
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    places = torch.cat([torch.arange(size) for size in sizes])
    return Batch(logits, rows, places, {name: torch.tensor(value) for name, value in targets.items()})


def softplus(x):
    return math.log1p(math.exp(x))


def test_pairs_with_margins_votes_and_weights():
    rows = Dataset.from_dict(
        {"chosen": ["a", "b"], "rejected": ["c", "d"], "chosen_votes": [3.0, 1.0], "rejected_votes": [1.0, 1.0],
         "weight": [2.0, 1.0]}
    )  # fmt: skip
    objective = make_objective("bradley_terry")
    targets = objective.targets(rows)
    assert targets == {"margin": [0.0, 0.0], "weight": [2.0, 1.0], "target": [0.75, 0.5]}
    assert objective.texts(rows) == [[("", "a"), ("", "c")], [("", "b"), ("", "d")]]
    # Texts come row by row: chosen, rejected, chosen, rejected.
    batch = batch_of([1.0, 0.0, 0.0, 2.0], targets, sizes=[2, 2])
    first = 0.75 * softplus(-1.0) + 0.25 * softplus(1.0)
    second = 0.5 * softplus(2.0) + 0.5 * softplus(-2.0)
    assert objective.total(batch).item() == pytest.approx(2 * first + second, abs=1e-6)
    assert objective.count(batch.targets).item() == 3.0
    assert [x.item() for x in objective.right(batch)] == [1, 1]  # the second is a tie, which nobody can get right


def test_pairs_are_read_with_their_prompt():
    rows = Dataset.from_dict({"prompt": ["p", None], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    assert make_objective("hinge").texts(rows) == [[("p", "a"), ("p", "c")], [("", "b"), ("", "d")]]


def test_hinge_stops_at_the_margin():
    objective = make_objective("hinge", {"margin": 0.5})
    targets = objective.targets(Dataset.from_dict({"chosen": ["a"] * 2, "rejected": ["b"] * 2, "margin": [0.0, 1.0]}))
    batch = batch_of([1.0, 0.0, 1.0, 0.0], targets, sizes=[2, 2])
    assert objective.total(batch).item() == pytest.approx(0.0 + 0.5)
    with pytest.raises(ValueError, match="hinge takes a side"):
        objective.targets(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "target": [0.3]}))


def test_pairs_in_batch_count_each_pair_once_whatever_the_order_of_the_texts():
    objective = make_objective("pairs_in_batch", min_gap=0.5)
    batch = batch_of([0.0, 1.0, 3.0], {"score": [2.0, 1.0, 1.2]})
    # Only 2.0 is half a point away from the others, and above both.
    assert objective.count(batch.targets).item() == 2
    assert objective.total(batch).item() == pytest.approx(softplus(1.0) + softplus(3.0), abs=1e-5)
    assert [x.item() for x in objective.right(batch)] == [0, 2]
    shuffled = Batch(batch.logits[[2, 0, 1]], torch.tensor([2, 0, 1]), batch.places, batch.targets)
    assert objective.total(shuffled).item() == pytest.approx(objective.total(batch).item(), abs=1e-5)


def test_pairs_within_a_column_compare_only_its_equal_rows():
    rows = Dataset.from_dict(
        {"prompt": ["p", "q", "p", "q", "r"], "completion": list("abcde"), "score": [1.0, 5.0, 3.0, 2.0, 4.0]}
    )
    objective = make_objective("pairs_in_batch", {"within": "prompt"})
    assert objective.texts(rows) == [[("p", "a"), ("p", "c")], [("q", "b"), ("q", "d")], [("r", "e")]]
    assert objective.targets(rows) == {"score": [[1.0, 3.0], [5.0, 2.0], [4.0]]}
    nan = float("nan")
    batch = batch_of([0.0, 1.0, 0.0, 2.0, 9.0], {"score": [[1.0, 3.0], [5.0, 2.0], [4.0, nan]]}, sizes=[2, 2, 1])
    assert objective.count(batch.targets).item() == 2
    assert objective.total(batch).item() == pytest.approx(softplus(-1.0) + softplus(2.0), abs=1e-5)
    assert [x.item() for x in objective.right(batch)] == [1, 2]


@pytest.mark.parametrize(
    ("loss", "of_distance"),
    [("mse", lambda d: d * d), ("mae", abs), ("huber", lambda d: d * d / 2 if abs(d) <= 1 else abs(d) - 0.5)],
)
def test_ratings_are_learned_in_standard_deviations(loss, of_distance):
    rows = Dataset.from_dict({"completion": list("abc"), "score": [1.0, 3.0, 5.0], "weight": [1.0, 0.0, 2.0]})
    objective = make_objective(loss)
    objective.fit(rows)
    unit = (8 / 3) ** 0.5
    targets = objective.targets(rows)
    assert targets["score"] == pytest.approx([-2 / unit, 0.0, 2 / unit])
    batch = batch_of([0.0, 9.0, 3.0], targets)
    expected = of_distance(2 / unit) + 2 * of_distance(3 - 2 / unit)
    assert objective.total(batch).item() == pytest.approx(expected, rel=1e-5)
    assert objective.count(batch.targets).item() == 3.0
    assert objective.calibration()(torch.tensor([0.0, 1.0]).numpy()) == pytest.approx([3.0, 3.0 + unit])


def test_levels_are_those_of_the_votes():
    rows = Dataset.from_dict({"completion": list("ab"), "score": [1.5, 3.0], "votes": [[1, 1, 2, 2], [3, 3, 3, 1]]})
    objective = make_objective("classification")
    objective.fit(rows)
    assert objective.label_names == ("1", "2", "3")
    targets = objective.targets(rows)
    assert targets["shares"] == [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]
    batch = batch_of([[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)]], targets)
    second = 0.25 * math.log(4.0) + 0.75 * math.log(2.0)  # probabilities 1/4 1/4 1/2
    assert objective.total(batch).item() == pytest.approx(math.log(3.0) + second, abs=1e-6)
    assert objective.count(batch.targets).item() == 2.0


def test_a_mean_rating_is_no_level():
    objective = make_objective("ordinal", {"levels": [1.0, 2.0]})
    rows = Dataset.from_dict({"completion": ["a"], "score": [1.5]})
    objective.fit(rows)
    with pytest.raises(ValueError, match="Row 0 has the rating 1.5, which is none of the levels 1, 2"):
        objective.targets(rows)
    with pytest.raises(ValueError, match="The ratings have 21 levels"):
        make_objective("ordinal").fit(Dataset.from_dict({"completion": ["a"] * 21, "score": list(range(21))}))


def test_rankings_weigh_rows_and_leave_out_lists_of_one():
    rows = Dataset.from_dict({"completions": [["a", "b"], ["c"]], "ranks": [[2.0, 1.0], [1.0]], "weight": [2.0, 5.0]})
    objective = make_objective("plackett_luce")
    assert objective.targets(rows) == {"ranks": [[2.0, 1.0], [1.0]], "size": [2.0, 1.0], "weight": [2.0, 5.0]}
    targets = {"ranks": [[2.0, 1.0], [1.0, float("nan")]], "size": [2.0, 1.0], "weight": [2.0, 5.0]}
    batch = batch_of([1.0, 0.0, 7.0], targets, sizes=[2, 1])
    assert objective.total(batch).item() == pytest.approx(2 * softplus(1.0), abs=1e-6)
    assert objective.count(batch.targets).item() == 2.0
    assert [x.item() for x in objective.right(batch)] == [1, 2]


@pytest.mark.parametrize("loss", ["info_nce", "best_worst"])
def test_the_best_of_a_list(loss):
    objective = make_objective(loss, {"sequential": True} if loss == "best_worst" else None)
    rows = Dataset.from_dict({"completions": [["a", "b", "c"]], "best": [2], "worst": [0]})
    batch = batch_of([0.0, 0.0, math.log(2.0)], objective.targets(rows), sizes=[3])
    best = math.log(4.0) - math.log(2.0)
    worst = math.log(2.0)  # of the two others
    assert objective.total(batch).item() == pytest.approx(best + (worst if loss == "best_worst" else 0.0), abs=1e-6)
    assert objective.count(batch.targets).item() == 1.0
    assert [x.item() for x in objective.right(batch)] == [1, 1]


def test_the_best_of_a_ranking_is_its_first():
    objective = make_objective("info_nce", {"temperature": 0.5})
    batch = batch_of([0.0, 1.0], {"ranks": [[1.0, 2.0]], "size": [2.0]}, sizes=[2])
    assert objective.total(batch).item() == pytest.approx(softplus(2.0), abs=1e-6)


def test_several_texts_that_share_the_first_rank_are_each_the_best_as_often():
    objective = make_objective("info_nce", {"temperature": 0.5})
    batch = batch_of([0.0, 1.0, 0.0], {"ranks": [[1.0, 1.0, 2.0]], "size": [3.0]}, sizes=[3])
    # log(e^0 + e^2 + e^0) less the mean of 0 and 2.
    assert objective.total(batch).item() == pytest.approx(math.log(2 + math.exp(2.0)) - 1.0, abs=1e-6)


def test_a_vote_that_is_missing_is_left_out():
    objective = make_objective("ordinal")
    rows = Dataset.from_dict({"completion": list("ab"), "score": [1.0, 2.0], "votes": [[1.0, None], [2.0, 2.0]]})
    objective.fit(rows)
    assert objective.levels == [1.0, 2.0]
    assert objective.targets(rows)["shares"] == [[1.0, 0.0], [0.0, 1.0]]


def test_weights_count_for_objectives_and_steps():
    rows = Dataset.from_list(
        [
            {"completion": "a", "scores": {"x": 1.0}, "weight": 2.0},
            {"completion": "b", "scores": {"x": 3.0}, "weight": 0.0},
        ]
    )
    objective = make_objective("multi_objective")
    objective.fit(rows)
    batch = batch_of([[0.0], [9.0]], objective.targets(rows))
    assert objective.total(batch).item() == pytest.approx(2.0)  # the target is -1
    assert objective.count(batch.targets).item() == 2.0
    process = make_objective("process")
    targets = {"labels": torch.tensor([[1.0], [1.0]]), "ends": torch.zeros(2, 1), "weight": torch.tensor([3.0, 0.0])}
    steps = Batch(torch.zeros(2, 1, 1), torch.arange(2), torch.zeros(2, dtype=torch.long), targets)
    assert process.total(steps).item() == pytest.approx(3 * math.log(2.0))
    assert process.count(targets).item() == 3.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [0.1, 0.4]}, "differ by 0.3 at most and min_gap is 0.5"),
        ({"score": [0.0, 4.0], "weight": [1.0, 2.0]}, "does not use weights. Take mse"),
    ],
)
def test_ratings_of_which_pairs_would_learn_nothing_are_refused(columns, message):
    rows = Dataset.from_dict({"completion": ["a", "b"], **columns})
    with pytest.raises(ValueError, match=message):
        make_objective("pairs_in_batch").fit(rows)


def test_labels_may_be_balanced_noisy_or_missing():
    rows = Dataset.from_dict({"completion": list("abcd"), "label": [1.0, 0.0, 0.0, 0.0]})
    objective = make_objective("binary_cross_entropy", {"balanced": True})
    objective.fit(rows)
    batch = batch_of([2.0, 2.0, 2.0], {"label": [1.0, 0.0, float("nan")]})
    assert objective.total(batch).item() == pytest.approx(3 * softplus(-2.0) + softplus(2.0), abs=1e-5)
    assert objective.count(batch.targets).item() == 2.0
    noisy = make_objective("binary_cross_entropy", {"noise": [0.1, 0.2]})
    seen = 0.8 * 0.5 + 0.1 * 0.5
    assert noisy.total(batch_of([0.0], {"label": [1.0]})).item() == pytest.approx(-math.log(seen), abs=1e-6)


def test_objectives_are_learned_alike_and_weighed_in_the_score():
    rows = Dataset.from_list(
        [{"completion": text, "scores": {"good": good, "long": long}}
         for text, good, long in (("a", 1.0, 100.0), ("b", 3.0, None), ("c", 2.0, 300.0))]
    )  # fmt: skip
    objective = make_objective("multi_objective", {"weights": {"good": 2.0, "long": -1.0}})
    objective.fit(rows)
    assert objective.label_names == ("good", "long")
    assert objective.score_labels() == {"good": pytest.approx(2 / 3), "long": pytest.approx(-1 / 3)}
    targets = objective.targets(rows)["scores"]
    unit = (2 / 3) ** 0.5
    assert targets[0] == pytest.approx([-1 / unit, -1.0])
    assert targets[1][0] == pytest.approx(1 / unit)
    assert math.isnan(targets[1][1])
    batch = batch_of([[0.0, 0.0]] * 3, {"scores": targets})
    assert objective.total(batch).item() == pytest.approx(2 * 2 / unit**2 + 1 * 2, abs=1e-5)
    assert objective.count(batch.targets).item() == 2 * 3 + 1 * 2


def test_a_step_that_was_cut_off_or_has_no_label_does_not_count():
    objective = make_objective("process")
    nan = float("nan")
    logits = torch.tensor([[[9.0], [1.0], [9.0], [2.0]], [[9.0], [9.0], [9.0], [3.0]]])
    targets = {
        "labels": torch.tensor([[1.0, 0.0, nan], [1.0, 1.0, nan]]),
        "ends": torch.tensor([[1.0, 3.0, nan], [-1.0, 3.0, nan]]),
    }
    batch = Batch(logits, torch.arange(2), torch.zeros(2, dtype=torch.long), targets)
    assert objective.total(batch).item() == pytest.approx(softplus(-1.0) + softplus(2.0) + softplus(-3.0), abs=1e-5)
    assert objective.count(targets).item() == 3
    assert [x.item() for x in objective.right(batch)] == [2, 3]


def test_every_kind_of_feedback_has_a_loss_that_reads_it():
    for kind in ("pairs", "votes", "ratings", "rankings", "best_worst", "unpaired", "objectives", "steps"):
        assert kind in LOSSES[choose_loss("auto", kind)].reads
    assert choose_loss("bradley_terry", "ratings") == "bradley_terry"  # its pairs are drawn before
    with pytest.raises(ValueError, match="mse does not read pairs. For pairs there is bradley_terry, hinge"):
        choose_loss("mse", "pairs")
    with pytest.raises(ValueError, match="clicks are noisy signs.*convert_to: unpaired"):
        choose_loss("auto", "clicks")


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("bradley_terry", {"label_smooting": 0.1}, "Did you mean label_smoothing?"),
        ("bradley_terry", {"label_smoothing": 0.6}, "label_smoothing is 0.6; give 0 to 0.5"),
        ("mse", {"delta": 1.0}, "It has none"),
        ("huber", {"delta": 0.0}, "delta is 0.0"),
        ("pairs_in_batch", {"scale": -1.0}, "scale is -1.0"),
        ("plackett_luce", {"ties": "all"}, "give efron or breslow"),
        ("info_nce", {"temperature": 0.0}, "temperature is 0.0"),
        ("binary_cross_entropy", {"noise": [0.6, 0.5]}, "sum to less than 1"),
        ("multi_objective", {"kind": "mean"}, "kind is 'mean'"),
        ("multi_objective", {"weights": {"a": 0}}, "one at least that is not 0"),
        ("multi_objective", {"weights": {"a": None}}, "The weight of 'a' is None"),
        ("process", {"step_token": ""}, "step_token is empty"),
    ],
)
def test_settings_of_a_loss_that_cannot_be_are_refused(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        make_objective(loss, settings)


def test_weights_of_objectives_that_are_not_there_are_refused():
    objective = make_objective("multi_objective", {"weights": {"helpful": 1.0}})
    with pytest.raises(ValueError, match="weights or gate name 'helpful'; the objectives are good"):
        objective.fit(Dataset.from_list([{"completion": "a", "scores": {"good": 1.0}}]))


GATED = [{"good": 1.0, "long": 2.0, "overall": 1.0}, {"good": 3.0, "long": 0.0, "overall": 3.0}]


def test_a_gate_weighs_the_objectives_of_each_text():
    objective = make_objective("multi_objective", {"gate": "overall"})
    objective.fit(Dataset.from_list([{"completion": "a", "scores": scores} for scores in GATED]))
    assert objective.label_names == ("good", "long", "gate of good", "gate of long")
    targets = objective.targets(Dataset.from_list([{"completion": "a", "scores": GATED[0]}]))
    assert targets["scores"] == [[-1.0, 1.0, -1.0]]
    # Gates of log 3 and 0 are shares of 3/4 and 1/4: the overall score is 3/4 * 2 + 1/4 * 6 = 3.
    batch = batch_of([[2.0, 6.0, math.log(3.0), 0.0]], targets)
    assert objective.total(batch).item() == pytest.approx(3.0**2 + 5.0**2 + 4.0**2, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (GATED, {"gate": "helpful"}, "name 'helpful'"),
        ([{"good": 1.0, "overall": 1.0}], {"gate": "overall"}, "needs two objectives besides 'overall'"),
        ([*GATED, {"good": 1.0, "long": 1.0}], {"gate": "overall"}, "1 rows are without it"),
    ],
)
def test_a_gate_needs_objectives_and_a_judgement(rows, settings, message):
    objective = make_objective("multi_objective", settings)
    with pytest.raises(ValueError, match=message):
        objective.fit(Dataset.from_list([{"completion": "a", "scores": scores} for scores in rows]))


PAGE = Path(__file__).parents[3] / "docs/reward_losses.md"


def test_the_page_names_every_loss_and_settings_that_it_has():
    cells = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    of = [(re.findall(r"`(\w+)`", row[3]), set(re.findall(r"`(\w+)`", row[5]))) for row in cells[2:]]
    assert {name for names, _ in of for name in names} == set(LOSSES)
    for names, settings in of:
        for name in names:
            assert settings <= {field.name for field in dataclasses.fields(LOSSES[name])}, name
