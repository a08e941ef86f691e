"""Whether probabilities are the shares that come true. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

from rlhf_recipes.metrics import module
from rlhf_recipes.reward_modeling.evaluation.figures import calibration


class Calibration(module.OfColumns):
    description = "Expected calibration error over bins of equal mass, Brier score, and the reliability table."
    inputs = """
Args:
    predictions: probability of each row, from 0 to 1.
    references: outcome, 0 or 1, or the share of votes.
    bins: number of bins (default 10).
    pairs: whether rows are pairs, whose order means nothing (default False).
    units, other_units: what intervals are over: prompts, or both texts of each pair (default: the rows).
Returns:
    ece, brier, each with _ci95, rows, and bins: a list of from, to, rows, probability, outcome.
"""
    citation = (
        "Naeini, Cooper, Hauskrecht (2015). Obtaining Well Calibrated Probabilities Using Bayesian Binning. AAAI."
    )

    def _compute(self, predictions, references, **options):
        return calibration(predictions, references, **options)
