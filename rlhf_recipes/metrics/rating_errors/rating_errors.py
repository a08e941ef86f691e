"""How far scores lie from ratings, and how the two correlate. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

from rlhf_recipes.metrics import module
from rlhf_recipes.reward_modeling.evaluation.figures import rating_errors


class RatingErrors(module.OfColumns):
    description = "MAE, RMSE, R2, Pearson, Spearman and Kendall's tau-b of scores and ratings, with intervals."
    inputs = """
Args:
    predictions: score of each text.
    references: rating of each text.
    prompts: what intervals are over (default: the rows).
Returns:
    mae, rmse, r2, pearson, spearman, kendall, each with _ci95, and texts.
"""
    citation = "Kendall (1945). The Treatment of Ties in Ranking Problems. Biometrika 33."

    def _compute(self, predictions, references, **options):
        return rating_errors(predictions, references, **options)
