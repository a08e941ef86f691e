"""What a reward model is worth on labels: of texts (good or bad, clicks, seconds) and of the steps of an answer.

The parts of `evaluation.json` are listed in `ratings.py`.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.reward_modeling.evaluation.figures import calibration
from rlhf_recipes.reward_modeling.evaluation.metrics import Metrics, entropy, log_loss, rating_metrics
from rlhf_recipes.reward_modeling.evaluation.ratings import BINS, WORST, Evaluation, started
from rlhf_recipes.reward_modeling.scored import Scored
from rlhf_recipes.statistics import mean_with_interval, ratio_interval

logger = logging.getLogger(__name__)


# --- Labels ----------------------------------------------------------------------------------------------


def label_evaluation(
    scored: Scored,
    labels: Sequence[float],
    order: Sequence[float] | None = None,
    curve: LogisticCalibration | None = None,
) -> Evaluation:
    """Texts with a label each: good or bad, or a share from 0 to 1 (clicks), or a wish to stay (seconds).

    The accuracy over all pairs of different labels is the area under the ROC curve. Probabilities are
    `sigmoid(scale * score + offset)`, fitted on validation rows; without a curve the score itself is the logit.

    Args:
        scored ([`Scored`]): One score a row.
        labels (`Sequence[float]` of length N): From 0 to 1.
        order (`Sequence[float]` of length N, *optional*): What pairs are compared by. Default: the labels.
        curve ([`LogisticCalibration`], *optional*): From 0 to 1.
    """
    result = started(scored)
    x, y, prompts = np.array(scored.column(0)), np.asarray(labels, dtype=np.float64), scored.shared_prompts()
    ranked = y if order is None else np.asarray(order, dtype=np.float64)
    if np.ptp(ranked) > 0:
        found = rating_metrics(scored.texts(), ranked.tolist(), x.tolist(), min_gap=0.0, units=prompts)
        result.flat |= {key: value for key, value in found.items() if key != "pearson"}
        result.accuracies()
    else:
        logger.warning("All %d labels are the same: which text is better cannot be asked.", len(y))
        result.flat |= {"pairwise_accuracy": None, "pairwise_accuracy_ci95": None, "pairs": 0}
    logits = x if curve is None else curve.scale * x + curve.offset
    losses = y * np.logaddexp(0, -logits) + (1 - y) * np.logaddexp(0, logits)
    base = float(y.mean())
    result.flat |= {
        "log_loss": log_loss(logits, y),
        "base_rate": base,
        "base_log_loss": entropy([base]),
    }
    result.part("calibration", lambda: {"of": "labels"} | calibration(_sigmoid(logits), y, BINS, units=prompts))
    if "calibration" in result.nested:
        result.flat["ece"] = result.nested["calibration"]["ece"]
    result.nested["labels"] = {
        "log_loss": result.flat["log_loss"],
        "log_loss_ci95": mean_with_interval(losses, prompts)[1],
        "base_rate": base,
        "base_log_loss": result.flat["base_log_loss"],
        "calibrated_on_validation": curve is not None,
    }
    said = _sigmoid(logits)
    result.nested["worst"] = [
        {"prompt": scored.prompts[row], "text": scored.completions[row][0], "human": float(y[row]), "score": said[row]}
        for row in np.argsort(-losses, kind="stable")[:WORST].tolist()
    ]
    return result


def _sigmoid(logits: NDArray[np.float64]) -> list[float]:
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).tolist()


# --- Steps -----------------------------------------------------------------------------------------------


def step_evaluation(scored: Scored, labels: Sequence[Sequence[float | None]]) -> Evaluation:
    """Steps of an answer, each right or wrong (a label below 0.5 is wrong; `None` does not count).

    The first error and the answers without one are asked as ProcessBench asks them (arXiv 2412.06559): `process_f1` is
    the harmonic mean of the share of wrong answers whose first wrong step is the first that the model flags, and of
    the share of right answers of which it flags none. Intervals are over answers.

    Args:
        scored ([`Scored`]): For each step the probability that it is right.
        labels (`Sequence[Sequence[float | None]]`): Of each step.
    """
    result = started(scored)
    pairs = [
        [(score < 0.5, label < 0.5) for score, label in zip(own, said, strict=True) if label is not None]
        for own, said in zip(scored.scores, labels, strict=True)
    ]
    flat = np.array([pair for own in pairs for pair in own], dtype=bool)  # (M, 2)  flagged, wrong
    flagged, wrong = flat[:, 0], flat[:, 1]
    right = [sum(a == b for a, b in own) for own in pairs]
    counts = [len(own) for own in pairs]
    mistakes = 2 * int((flagged & wrong).sum()) + int((flagged ^ wrong).sum())
    with_error = [own for own in pairs if any(b for _, b in own)]
    found = [float(_first(own, 0) == _first(own, 1)) for own in with_error]
    clean = [float(not any(a for a, _ in own)) for own in pairs if not any(b for _, b in own)]
    result.flat |= {
        "step_accuracy": sum(right) / len(flat),
        "step_accuracy_ci95": ratio_interval(right, counts),
        "step_base_accuracy": float(max(wrong.mean(), 1 - wrong.mean())),
        "step_f1": 2 * int((flagged & wrong).sum()) / mistakes if mistakes else None,
        "first_error_rate": float(np.mean(found)) if found else None,
        "steps": len(flat),
    }
    shares = [float(np.mean(found)), float(np.mean(clean))] if found and clean else []
    result.nested["steps"] = {
        **result.flat,
        "first_error_rate_ci95": ratio_interval(found, np.ones(len(found))),
        "answers_with_error": len(found),
        "clean_rate": float(np.mean(clean)) if clean else None,
        "clean_rate_ci95": ratio_interval(clean, np.ones(len(clean))),
        "answers_without_error": len(clean),
        "process_f1": (2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0) if shares else None,
    }
    result.part("calibration", lambda: _step_calibration(scored, labels))
    result.nested["worst"] = _worst_steps(scored, labels)
    return result


def _first(pairs: Sequence[tuple[bool, bool]], side: int) -> int | None:
    return next((place for place, pair in enumerate(pairs) if pair[side]), None)


def _step_calibration(scored: Scored, labels: Sequence[Sequence[float | None]]) -> Metrics:
    rows = [
        (score, label, row)
        for row, (own, said) in enumerate(zip(scored.scores, labels, strict=True))
        for score, label in zip(own, said, strict=True)
        if label is not None
    ]
    scores, wanted, units = zip(*rows, strict=True)
    return {"of": "steps"} | calibration(scores, wanted, BINS, units=units)


def _worst_steps(scored: Scored, labels: Sequence[Sequence[float | None]]) -> list[Metrics]:
    """Of each answer the step that is missed by most, and of all answers the largest of these."""
    cases = []
    for row, (own, said) in enumerate(zip(scored.scores, labels, strict=True)):
        missed = [(abs(score - label), place) for place, (score, label) in enumerate(zip(own, said, strict=True))
                  if label is not None]  # fmt: skip
        distance, place = max(missed, default=(0.0, 0))
        if distance >= 0.5:
            before = "\n\n".join([scored.prompts[row], *scored.completions[row][:place]]).strip()
            case = {"prompt": before, "text": scored.completions[row][place]}
            cases.append((distance, case | {"human": said[place], "score": own[place]}))
    return [case for _, case in sorted(cases, key=lambda case: -case[0])[:WORST]]
