"""How sure a reward model is of what it says, and from where on it is sure enough to say it.

Scores become probabilities, by a curve that is fitted to labelled rows or by the share of several models that agree.
Other labelled rows show what accuracy a threshold on the confidence brings, and choose it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_recipes.reward_modeling.uses.thresholds import Choice, Point, Sigmoid, coverage_curve, pick_threshold
from rlhf_recipes.starting.options import option
from rlhf_recipes.statistics import Floats

Method = Literal["fitted", "sigmoid", "agreement"]
BLANK, UNSURE, DISAGREE, TIE = "blank text", "not sure enough", "members disagree", "a tie"


@dataclass
class DoubtArguments:
    """How sure a label must be."""

    help_title = "Confidence"

    decision_threshold: float = option(0.0, "Rating from which on a text is good.")
    confidence: Literal["fitted", "sigmoid", "agreement"] | None = option(
        None, "From score to probability. Default: fitted to labels; of pairs without labels, sigmoid."
    )
    threshold: float = option(0.0, "Abstain below this confidence, from 0.5 to 1.")
    min_agreement: float = option(0.0, "Abstain where a smaller share of the models agree.")
    validation_name: str | None = option(None, "Labelled rows to learn the confidence from. Default: dataset_name.")
    validation_split: str | None = option(None, "Their split. Default: there are none.")
    fit_share: float = option(0.2, "Share of them that probabilities are fitted to; the rest shows the accuracy.")
    wanted_accuracy: float | None = option(None, "Choose the threshold so that this share of the labels is right.")
    guarantee: float = option(0.95, "With which probability that must hold; 0: on the labelled rows is enough.")

    def __post_init__(self) -> None:
        for name in ("threshold", "min_agreement", "fit_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        if self.wanted_accuracy is not None and (self.validation_split is None or self.threshold):
            raise ValueError(
                "wanted_accuracy chooses the threshold on labelled rows: give validation_split, and no threshold."
            )


@dataclass(frozen=True)
class Evidence:
    """What rewards say of N rows; of pairs the difference, first less second."""

    x: Floats  # (N,)  the weighted sum, of an ensemble the weighted mean; NaN for a row with a blank text
    members: Floats  # (K, N)  each reward by itself
    scores: list[Floats]  # (N,) each  the sum, or mean, of each side of the rows

    @property
    def of_pairs(self) -> bool:
        """Whether rows have two sides."""
        return len(self.scores) == 2


@dataclass(frozen=True)
class Verdicts:
    """What is said of N rows, and how surely; `(N,)` each."""

    probability: Floats  # the chance that the text is good, or the first of the pair better
    confidence: Floats  # the larger of it and its complement
    agreement: Floats  # share of the members on that side
    spread: Floats  # standard deviation of the members


def verdicts(evidence: Evidence, method: Method, curve: Sigmoid) -> Verdicts:
    """Turn scores into probabilities.

    `"fitted"` and `"sigmoid"` read the probability off the curve; `"agreement"` is the share of the members that lie
    beyond the curve's boundary, one that lies on it counting half.
    """
    good = (0.5 + 0.5 * np.sign(evidence.members - curve.boundary)).mean(axis=0)
    probability = good if method == "agreement" else curve(evidence.x)
    agreement = np.where(probability >= 0.5, good, 1 - good)
    confidence = np.maximum(probability, 1 - probability)
    return Verdicts(probability, confidence, agreement, evidence.members.std(axis=0))


def choose_method(method: Method | None, pairs: bool, labelled: bool) -> Method:
    """The way to a probability where none was named: fitted to labels where there are some.

    Without labels a pair has the probability of Bradley and Terry (1952), which is what reward models are trained to
    give, `sigma(first - second)` of their logits. The score of a single text means nothing by itself.

    Raises:
        `ValueError`: if single texts have no labels, or `"fitted"` is asked for without.
    """
    if method == "fitted" and not labelled:
        raise ValueError("confidence 'fitted' needs labelled rows to fit to: name a validation_split.")
    if method is None and not labelled and not pairs:
        raise ValueError(
            "How sure a score of a single text is must be learned from labelled rows: name a validation_split. Or say "
            "how to read it: confidence 'sigmoid' for a score that is a logit, 'agreement' for several models."
        )
    return method or ("fitted" if labelled else "sigmoid")


def curve_for(
    evidence: Evidence, labels: Mapping[int, float], rows: Sequence[int], method: Method, decision_threshold: float
) -> Sigmoid:
    """From scores to probabilities: fitted to rows, or `sigma(score - decision_threshold)`, of pairs `sigma(x)`."""
    if method != "fitted":
        return Sigmoid(1.0, 0.0 if evidence.of_pairs else -decision_threshold)
    used = [row for row in rows if not np.isnan(evidence.x[row])]
    if not used:
        raise ValueError("There are no labelled rows to fit probabilities to. Give more, or another fit_share.")
    return Sigmoid.fit(evidence.x[used], [labels[row] for row in used], pairs=evidence.of_pairs)


@dataclass(frozen=True)
class Held:
    """Labelled rows to look at a threshold on; `(M,)` each, of `total` rows."""

    confidence: Floats
    right: Floats
    total: int
    groups: list[int]


def held_out(
    found: Verdicts,
    labels: Mapping[int, float],
    rows: Sequence[int],
    min_agreement: float = 0.0,
    groups: Sequence[int] | None = None,
) -> Held:
    """How sure the model is of those `rows` that have labels (from 0 to 1), and whether it is right.

    Rows below `min_agreement` are refused; they and undecided ones count in `total`. `groups` says of each row which
    others it hangs together with.

    Raises:
        `ValueError`: if no row is left.
    """
    decided = [row for row in rows if labels[row] != 0.5]
    right, places = is_right(found.probability[decided], [labels[row] for row in decided])
    kept = [place for place, row in enumerate(places) if found.agreement[decided[row]] >= min_agreement]
    if not kept:
        raise ValueError(
            f"None of {len(rows)} labelled rows is left to choose a threshold on. Give more of them, a smaller "
            "fit_share, or a smaller min_agreement."
        )
    there = [decided[places[place]] for place in kept]
    together = there if groups is None else [groups[row] for row in there]
    return Held(found.confidence[there], right[kept], len(decided), together)


def is_right(probability: Floats, labels: Sequence[float]) -> tuple[Floats, list[int]]:
    """Whether the likelier side is that of the label, for the rows where both take one; and which rows these are."""
    given = np.asarray(labels, dtype=np.float64)
    rows = np.flatnonzero((given != 0.5) & (probability != 0.5) & ~np.isnan(probability))
    return ((probability[rows] > 0.5) == (given[rows] > 0.5)).astype(np.float64), rows.tolist()


def reasons(found: Verdicts, threshold: float, min_agreement: float = 0.0) -> list[str | None]:
    """Why a row gets no label; `None` where it gets one."""
    said: list[str | None] = []
    for probability, confidence, agreement in zip(found.probability, found.confidence, found.agreement, strict=True):
        blank, tie = bool(np.isnan(probability)), probability == 0.5
        checks = ((blank, BLANK), (tie, TIE), (agreement < min_agreement, DISAGREE), (confidence < threshold, UNSURE))
        said.append(next((why for holds, why in checks if holds), None))
    return said


@dataclass(frozen=True)
class Line:
    """How probabilities are made, and the confidence below which nothing is said."""

    method: Method
    sigmoid: Sigmoid
    threshold: float
    choice: Choice | None = None  # where the threshold was chosen
    curve: Sequence[Point] = ()  # what others would bring on labelled rows

    def __str__(self) -> str:
        if self.choice is None:
            return f"Labels from a confidence of {self.threshold:.3f} on."
        point, low_high = self.choice.point, self.choice.point.interval
        bound, guarantee = self.choice.bound, self.choice.guarantee
        sure = "nothing is guaranteed" if bound is None else f"at least {bound:.3f} with probability {guarantee:g}"
        return (
            f"Labels from a confidence of {self.threshold:.3f} on: of the labelled rows {point.coverage:.1%}, with an "
            f"accuracy of {point.accuracy:.3f} (95% interval {low_high[0]:.3f} to {low_high[1]:.3f}; "
            f"{sure})."
        )

    def figures(self) -> dict[str, Any]:
        """For metrics; `temperature` is what scores, or differences of two, are divided by."""
        figures: dict[str, Any] = {"confidence_method": self.method}
        if self.method != "agreement":
            scale, offset = self.sigmoid.scale, self.sigmoid.offset
            figures |= {"scale": scale, "offset": offset, "temperature": 1 / scale}
        return figures | ({"threshold": self.threshold} if self.choice is None else self.choice.figures())


@dataclass(frozen=True)
class Known:
    """Labelled rows."""

    evidence: Evidence
    labels: Mapping[int, float]  # by row
    for_fitting: Sequence[int]
    for_looking: Sequence[int]
    groups: Sequence[int] | None = None  # which rows hang together, such as those of a prompt


def draw_line(args: DoubtArguments, evidence: Evidence, known: Known | None) -> Line:
    """Settle how sure is sure enough.

    The confidences of the rows to be labelled, and no labels, say which thresholds are tried for a guarantee. Where
    nothing is fitted, all labelled rows are looked at.

    Raises:
        `ValueError`: if labels are needed and there are none, if all rows are fitted to and a guarantee is asked for,
            or no threshold will do.
    """
    method = choose_method(args.confidence, evidence.of_pairs, known is not None)
    if known is None:
        return Line(method, curve_for(evidence, {}, [], method, args.decision_threshold), args.threshold)
    fit_rows, rows = known.for_fitting, known.for_looking
    if method != "fitted":
        rows = sorted({*fit_rows, *rows})
    elif not rows:  # fit_share is 1
        if args.wanted_accuracy is not None and args.guarantee:
            raise ValueError(
                "fit_share is 1, so no labelled row is left that the confidence was not fitted to, and nothing can be "
                "guaranteed. Give a smaller fit_share, or guarantee 0."
            )
        rows = fit_rows
    sigmoid = curve_for(known.evidence, known.labels, fit_rows, method, args.decision_threshold)
    held = held_out(verdicts(known.evidence, method, sigmoid), known.labels, rows, args.min_agreement, known.groups)
    curve = coverage_curve(held.confidence, held.right, held.total, held.groups)
    if args.wanted_accuracy is None:
        return Line(method, sigmoid, args.threshold, None, curve)
    asked = verdicts(evidence, method, sigmoid)
    grid = asked.confidence[~np.isnan(asked.confidence) & (asked.agreement >= args.min_agreement)]
    given = (args.wanted_accuracy, args.guarantee, grid if len(grid) else None, held.total, held.groups)
    choice = pick_threshold(held.confidence, held.right, *given)
    return Line(method, sigmoid, choice.threshold, choice, curve)
