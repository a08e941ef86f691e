"""Share of pairs of texts that scores put in people's order. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

from rlhf_recipes.metrics import module
from rlhf_recipes.reward_modeling.evaluation.figures import pairwise_accuracy
from rlhf_recipes.reward_modeling.evaluation.subsets import subset_accuracy


class PairwiseAccuracy(module.OfColumns):
    description = "Share of pairs of texts that scores put in people's order; equal scores count half."
    inputs = """
Args:
    predictions: score of each text; in the configuration "pairs" of each chosen text.
    references: rating of each text; in the configuration "pairs" the score of the rejected text.
    min_gap (ratings): least difference of two ratings (default 0.5).
    prompts: what each text answers; only texts of one prompt are compared, and intervals are over prompts.
    subsets, sections, section_weights (pairs): as in subset_accuracy of rlhf_recipes.
Returns:
    pairwise_accuracy, pairwise_accuracy_ci95, pairs; in the configuration "pairs" also subsets, sections, score.
"""
    citation = "Bradley and Terry (1952). Rank Analysis of Incomplete Block Designs. Biometrika 39."
    configurations = ("ratings", "pairs")

    def _compute(self, predictions, references, min_gap=0.5, subsets=None, prompts=None, **options):
        if self.config_name == "pairs":
            names = ["all"] * len(predictions) if subsets is None else subsets
            metrics = subset_accuracy(predictions, references, names, prompts, **options)
            return metrics if subsets is not None else {k: v for k, v in metrics.items() if k != "subsets"}
        if subsets is not None:
            raise ValueError('subsets belong to the configuration "pairs": load("pairwise_accuracy", "pairs").')
        return pairwise_accuracy(predictions, references, min_gap, prompts, **options)
