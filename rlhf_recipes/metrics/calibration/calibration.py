"""Whether probabilities are the shares that come true. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

import datasets
import evaluate

from rlhf_recipes.reward_modeling.evaluation.figures import calibration

DESCRIPTION = "Expected calibration error over bins of equal mass, Brier score, and the reliability table."
INPUTS = """
Args:
    predictions: probability of each row, from 0 to 1.
    references: outcome, 0 or 1, or the share of votes.
    bins: number of bins (default 10).
    pairs: whether rows are pairs, whose order means nothing (default False).
    units, other_units: what intervals are over: prompts, or both texts of each pair (default: the rows).
Returns:
    ece, brier, each with _ci95, rows, and bins: a list of from, to, rows, probability, outcome.
"""
CITATION = "Naeini, Cooper, Hauskrecht (2015). Obtaining Well Calibrated Probabilities Using Bayesian Binning. AAAI."


class Calibration(evaluate.Metric):
    def _info(self):
        column = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
        )

    def _compute(self, predictions, references, **options):
        return calibration(predictions, references, **options)
