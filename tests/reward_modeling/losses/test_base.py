"""The losses by name, and what must hold for each of them."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.autograd import gradcheck

from rlhf_recipes.reward_modeling.losses import LOSSES, choose_loss, make_objective, maths
from rlhf_recipes.reward_modeling.losses.base import Batch
from tests.reward_modeling.losses.batches import NAN, batch_of, drawn, t

PAGE = Path(__file__).parents[3] / "docs/reward_losses.md"
LEVELS = Dataset.from_dict({"completion": list("abcd"), "score": [1.0, 2.0, 3.0, 4.0]})
OBJECTIVES = Dataset.from_dict({"completion": list("ab"), "scores": [{"x": 1.0, "y": 2.0}, {"x": 0.0, "y": 0.0}]})
PAIRS = {"margin": t(0.0, 1.0, 0.3)}
SHARES = {"shares": t([1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1])}
RANKS = {"ranks": t([1, 2, 2, 4], [3, 1, 4, 2], [2, 2, 2, 1]), "size": t(4, 4, 4)}
BEST = {"best": torch.tensor([0, 1, 3]), "worst": torch.tensor([3, 2, 1]), "size": t(4, 4, 4)}
# By name: settings, shape of the logits, texts in a row, targets, and rows to fit to.
CASES = {
    "bradley_terry": ({"center": 0.1, "label_smoothing": 0.2}, (6, 1), 2, {**PAIRS, "target": t(0.3, 1.0, 0.5)}, None),
    "hinge": ({}, (6, 1), 2, PAIRS, None),
    "pairs_in_batch": ({"texts_alike": True}, (3, 1), 1, {"score": t(0.0, 1.0, 3.0)}, None),
    "soft pairs_in_batch": ({"min_gap": 0, "scale": 0.5}, (3, 1), 1, {"score": t(0.0, 1.0, 1.3)}, None),
    "mse": ({}, (3, 1), 1, {"score": t(0.0, 1.0, 0.3)}, None),
    "mae": ({}, (3, 1), 1, {"score": t(0.0, 1.0, 0.3)}, None),
    "huber": ({}, (3, 1), 1, {"score": t(0.0, 1.0, 0.3)}, None),
    "ordinal": ({}, (3, 1), 1, SHARES, LEVELS),
    "classification": ({}, (3, 4), 1, SHARES, LEVELS),
    "plackett_luce": ({}, (12, 1), 4, RANKS, None),
    "best_worst": ({}, (12, 1), 4, BEST, None),
    "info_nce": ({"temperature": 0.7}, (12, 1), 4, BEST, None),
    "binary_cross_entropy": ({}, (3, 1), 1, {"label": t(0.0, 1.0, 0.3)}, None),
    "noisy binary_cross_entropy": ({"noise": [0.1, 0.0]}, (3, 1), 1, {"label": t(0.0, 1.0, 0.3)}, None),
    "multi_objective": ({}, (3, 2), 1, {"scores": t([1, NAN], [0.2, 0], [NAN, NAN])}, OBJECTIVES),
    "process": ({}, (3, 4, 1), 1, {"labels": t([1, NAN], [0.2, 0], [1, 1]), "ends": t([1, 3], [0, 2], [1, 3])}, None),
}
COMPARING = [name for name in CASES if not LOSSES[name.split()[-1]].fixes_level and name != "bradley_terry"]


def case(name):
    settings, shape, texts, targets, rows = CASES[name]
    objective = make_objective(name.split()[-1], settings)
    if rows is not None:
        objective.fit(rows)
    return objective, shape, lambda logits: batch_of(logits, targets, [texts] * (shape[0] // texts))


def test_every_loss_is_looked_at_here():
    assert {name.split()[-1] for name in CASES} == set(LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_differences(name):
    objective, shape, batch = case(name)
    logits = drawn(*shape, seed=5).requires_grad_()
    assert gradcheck(lambda logits: objective.losses(batch(logits)), (logits,))


@pytest.mark.parametrize("name", CASES)
def test_extreme_scores_have_finite_losses_and_gradients(name):
    objective, shape, batch = case(name)
    for seed in range(4):
        logits = (1e4 * drawn(*shape, seed=seed).sign()).float().requires_grad_()
        total = objective.total(batch(logits))
        total.backward()
        assert total.isfinite()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", COMPARING)
def test_comparisons_do_not_change_when_all_scores_rise(name):
    objective, shape, batch = case(name)
    logits = drawn(*shape)
    torch.testing.assert_close(objective.total(batch(logits + 7)), objective.total(batch(logits)))


@pytest.mark.parametrize("name", CASES)
def test_a_score_that_is_nan_is_not_hidden(name):
    objective, shape, batch = case(name)
    assert objective.total(batch(torch.full(shape, NAN))).isnan()


def test_where_nothing_counts_the_sum_is_0():
    for name, targets in (
        ("mse", {"score": t(NAN, NAN)}),
        ("binary_cross_entropy", {"label": t(NAN, NAN)}),
        ("bradley_terry", {"margin": t(0.0), "target": t(NAN)}),
    ):
        scores = torch.ones(2, requires_grad=True)
        objective, batch = make_objective(name), batch_of(scores, targets, [2] if name == "bradley_terry" else None)
        total = objective.total(batch)
        total.backward()
        assert (total.item(), scores.grad.abs().sum().item()) == (0.0, 0.0)
        assert objective.count(batch.targets) == 0


def test_lists_have_zeros_where_there_is_no_text():
    batch = Batch(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]), {})
    scores, mask = batch.lists()
    assert scores.tolist() == [[2.0, 3.0], [1.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False]]


# --- By name -------------------------------------------------------------------------------------


def test_every_kind_of_feedback_has_a_loss_that_reads_it():
    kinds = {
        "pairs": "bradley_terry", "votes": "bradley_terry", "ratings": "pairs_in_batch", "rankings": "plackett_luce",
        "best_worst": "best_worst", "unpaired": "binary_cross_entropy", "objectives": "multi_objective",
        "steps": "process",
    }  # fmt: skip
    assert {kind: choose_loss("auto", kind) for kind in kinds} == kinds
    assert choose_loss("bradley_terry", "ratings") == "bradley_terry"  # its pairs are drawn before
    with pytest.raises(ValueError, match="mse does not read pairs. For pairs there is bradley_terry, hinge"):
        choose_loss("mse", "pairs")
    with pytest.raises(ValueError, match="clicks are noisy signs.*convert_to: unpaired"):
        choose_loss("auto", "clicks")


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("bradley_terry", {"label_smooting": 0.1}, "did you mean 'label_smoothing'?"),
        ("bradley_terry", {"label_smoothing": 0.6}, "label_smoothing is 0.6; give 0 to 0.5"),
        ("bradley_terry", {"center": -1.0}, "center is -1.0; give 0 or more"),
        ("mse", {"delta": 1.0}, "It has none"),
        ("huber", {"delta": 0.0}, "delta is 0.0"),
        ("pairs_in_batch", {"scale": -1.0}, "scale is -1.0"),
        ("pairs_in_batch", {"min_gap": -1.0}, "min_gap is -1.0"),
        ("plackett_luce", {"top": 0}, "top is 0"),
        ("info_nce", {"temperature": 0.0}, "temperature is 0.0"),
        ("binary_cross_entropy", {"noise": [0.6, 0.5]}, "sum to less than 1"),
        ("multi_objective", {"kind": "mean"}, "kind is 'mean'; give one of mse, mae, huber, bce"),
        ("multi_objective", {"weights": {"a": 0}}, "one at least that is not 0"),
        ("multi_objective", {"weights": {"a": None}}, "The weight of 'a' is None"),
        ("process", {"step_token": ""}, "step_token is empty"),
    ],
)
def test_settings_of_a_loss_that_cannot_be_are_refused(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        make_objective(loss, settings)


def test_the_page_names_every_loss_and_settings_that_it_has():
    cells = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    of = [(re.findall(r"`(\w+)`", row[3]), set(re.findall(r"`(\w+)`", row[5]))) for row in cells[2:]]
    assert {name for names, _ in of for name in names} == set(LOSSES)
    for names, settings in of:
        for name in names:
            assert settings <= {field.name for field in dataclasses.fields(LOSSES[name])}, name


def test_the_maths_needs_torch_alone():
    tree = ast.parse(Path(maths.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"math", "torch"}
