"""Labels of texts and of steps, with numbers worked out by hand or by scikit-learn."""

import math

import pytest
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.reward_modeling.evaluation.labels import label_evaluation, step_evaluation
from rlhf_recipes.reward_modeling.scored import Scored
from tests.reward_modeling.feedback_rows import scored

SCORES = [-2.0, -0.5, 0.1, 0.3, 1.2, 2.0]
LABELS = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def labelled(scores=SCORES, labels=LABELS):
    return scored("unpaired", [[s] for s in scores], completion=[f"text {s}" for s in scores], label=labels)


def test_accuracy_of_labels_is_the_area_under_the_curve():
    result = label_evaluation(labelled(), LABELS)
    assert result.flat["pairwise_accuracy"] == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert result.flat["pairs"] == 2 * 4
    p = [1 / (1 + math.exp(-s)) for s in SCORES]
    assert result.flat["log_loss"] == pytest.approx(sklearn_log_loss(LABELS, p))
    assert result.flat["base_rate"] == pytest.approx(4 / 6)
    assert result.flat["base_log_loss"] == pytest.approx(sklearn_log_loss(LABELS, [4 / 6] * 6))
    assert result.nested["worst"][0]["text"] == "text -0.5"  # a good text of which least is said
    assert not result.nested["labels"]["calibrated_on_validation"]


def test_a_curve_makes_probabilities_of_scores():
    curve = LogisticCalibration(scale=2.0, offset=-1.0, low=0.0, high=1.0)
    result = label_evaluation(labelled(), LABELS, curve=curve)
    p = [1 / (1 + math.exp(-(2 * s - 1))) for s in SCORES]
    assert result.flat["log_loss"] == pytest.approx(sklearn_log_loss(LABELS, p))
    assert result.flat["pairwise_accuracy"] == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert result.nested["labels"]["calibrated_on_validation"]


def test_soft_labels_compare_all_that_differ():
    rows = scored("clicks", [[0.0], [2.0], [1.0]], completion=["a", "b", "c"], clicks=[1, 2, 3], views=[4, 4, 4])
    result = label_evaluation(rows, [0.25, 0.5, 0.75])
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (pytest.approx(2 / 3), 3)


def test_one_class_has_a_log_loss_and_no_order():
    result = label_evaluation(labelled([0.0, 1.0], [1.0, 1.0]), [1.0, 1.0])
    assert result.flat["pairwise_accuracy"] is None
    assert result.flat["log_loss"] == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2)
    assert "one class" in result.nested["missing"]["calibration"]


def steps(scores, labels):
    texts = [[f"step {place}" for place in range(len(own))] for own in scores]
    rows = scored(
        "rankings", [[0.0] * len(own) for own in scores], completions=texts, ranks=[[1.0] * len(own) for own in scores]
    )
    return Scored("steps", rows.dataset, scores, [""] * len(scores), texts, {}), labels


def test_steps_by_hand():
    result = step_evaluation(
        *steps(
            [[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9, 0.1], [0.3, 0.7]],
            [[1.0, 0.0, None], [1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0]],
        )
    )
    # Right: 2 of 2, 2 of 2, 2 of 3 (the first is flagged without reason), 1 of 2.
    assert (result.flat["step_accuracy"], result.flat["steps"]) == (7 / 9, 9)
    wrong, flagged = [0, 1, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0, 1, 1, 0]
    assert result.flat["step_f1"] == pytest.approx(f1_score(wrong, flagged))
    assert result.flat["step_base_accuracy"] == pytest.approx(7 / 9)
    # Of the two answers with a mistake the first one's is found; the other is flagged too early.
    assert result.flat["first_error_rate"] == 0.5
    found = result.nested["steps"]
    assert (found["answers_with_error"], found["answers_without_error"]) == (2, 2)
    assert found["clean_rate"] == 0.5
    assert found["process_f1"] == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))
    assert result.nested["worst"][0]["text"] == "step 0"


def test_steps_that_are_all_right():
    result = step_evaluation(*steps([[0.9, 0.8], [0.7]], [[1.0, 1.0], [1.0]]))
    assert result.flat["step_accuracy"] == 1.0
    assert result.flat["step_f1"] is None
    assert result.flat["first_error_rate"] is None
    assert result.nested["steps"]["process_f1"] is None
    assert result.nested["worst"] == []
