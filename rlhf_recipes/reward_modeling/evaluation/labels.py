"""What a reward model is worth on labels: of texts (good or bad, clicks, seconds) and of the steps of an answer.

The parts of `evaluation.json` are listed in `ratings.py`.
"""

import logging
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.reward_modeling.evaluation.figures import calibration
from rlhf_recipes.reward_modeling.evaluation.metrics import entropy, log_losses, rating_metrics
from rlhf_recipes.reward_modeling.evaluation.ratings import BINS, Evaluation, started, text_case, worst
from rlhf_recipes.reward_modeling.scored import Scored
from rlhf_recipes.statistics import Metrics, mean_with_interval, ratio_interval

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
    else:
        logger.warning("All %d labels are the same: which text is better cannot be asked.", len(y))
    result.accuracies()
    logits = x if curve is None else curve.scale * x + curve.offset
    losses, said, base = log_losses(logits, y), expit(logits).tolist(), float(y.mean())
    loss, interval = mean_with_interval(losses, prompts)
    of_labels = {"log_loss": loss, "base_rate": base, "base_log_loss": entropy([base])}
    result.flat |= of_labels
    result.calibrated("labels", said, y, units=prompts)
    result.nested["labels"] = of_labels | {"log_loss_ci95": interval, "calibrated_on_validation": curve is not None}
    texts = [of_row[0] for of_row in scored.completions]
    result.nested["worst"] = worst(zip(losses.tolist(), map(text_case, scored.prompts, texts, y, said), strict=True))
    return result


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
    known = [
        [(score, label) for score, label in zip(own, said, strict=True) if label is not None]
        for own, said in zip(scored.scores, labels, strict=True)
    ]
    pairs = [[(score < 0.5, label < 0.5) for score, label in own] for own in known]
    flat = np.array([pair for own in pairs for pair in own], dtype=bool)  # (M, 2)  flagged, wrong
    flagged, wrong = flat[:, 0], flat[:, 1]
    right = [sum(a == b for a, b in own) for own in pairs]
    mistakes = 2 * int((flagged & wrong).sum()) + int((flagged ^ wrong).sum())
    with_error = [own for own in pairs if any(b for _, b in own)]
    found = [float(_first(own, 0) == _first(own, 1)) for own in with_error]
    clean = [float(not any(a for a, _ in own)) for own in pairs if not any(b for _, b in own)]
    (found_rate, found_ends), (clean_rate, clean_ends) = (
        mean_with_interval(rows, ends=(0.0, 1.0)) if rows else (None, None) for rows in (found, clean)
    )
    result.flat |= {
        "step_accuracy": sum(right) / len(flat),
        "step_accuracy_ci95": ratio_interval(right, [len(own) for own in pairs]),
        "step_base_accuracy": float(max(wrong.mean(), 1 - wrong.mean())),
        "step_f1": 2 * int((flagged & wrong).sum()) / mistakes if mistakes else None,
        "first_error_rate": found_rate,
        "steps": len(flat),
    }
    process = None
    if found_rate is not None and clean_rate is not None:
        process = 2 * found_rate * clean_rate / (found_rate + clean_rate) if found_rate + clean_rate else 0.0
    result.nested["steps"] = {
        **result.flat,
        "first_error_rate_ci95": found_ends,
        "answers_with_error": len(found),
        "clean_rate": clean_rate,
        "clean_rate_ci95": clean_ends,
        "answers_without_error": len(clean),
        "process_f1": process,
    }
    rows = [(score, label, answer) for answer, own in enumerate(known) for score, label in own]
    scores, said, answers = zip(*rows, strict=True)
    result.part("calibration", lambda: {"of": "steps"} | calibration(scores, said, BINS, units=answers))
    cases = [_worst_step(scored, row, said) for row, said in enumerate(labels) if said]
    result.nested["worst"] = worst(case for case in cases if case[0] >= 0.5)
    return result


def _first(pairs: Sequence[tuple[bool, bool]], side: int) -> int | None:
    return next((place for place, pair in enumerate(pairs) if pair[side]), None)


def _worst_step(scored: Scored, row: int, said: Sequence[float | None]) -> tuple[float, Metrics]:
    """Of one answer the step that is missed by most, behind the steps before it."""
    own, texts = scored.scores[row], scored.completions[row]
    missed = [(abs(own[place] - label), place) for place, label in enumerate(said) if label is not None]
    distance, place = max(missed, default=(0.0, 0))
    before = "\n\n".join([scored.prompts[row], *texts[:place]]).strip()
    return distance, text_case(before, texts[place], said[place] or 0.0, own[place])
