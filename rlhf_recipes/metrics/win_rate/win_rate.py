"""How often the best of n by score beats a random text. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

from rlhf_recipes.metrics import module
from rlhf_recipes.reward_modeling.evaluation.figures import win_rate_curve


class WinRate(module.OfColumns):
    description = "Probability that the text a score chooses among n beats a random one in quality, for n = 1, 2, ..."
    inputs = """
Args:
    predictions: score of each text.
    references: quality of each text, such as its rating.
    prompts: what each text answers (default: all texts are one pool).
    max_n: largest n.
Returns:
    win_rate, that of the largest n, its _ci95, and curve: a list of n, win_rate, win_rate_ci95, ceiling, prompts.
"""
    citation = (
        "Nakano et al. (2021). WebGPT: Browser-assisted question-answering with human feedback. arXiv 2112.09332."
    )

    def _compute(self, predictions, references, **options):
        curve = win_rate_curve(predictions, references, **options)
        return {"win_rate": curve[-1]["win_rate"], "win_rate_ci95": curve[-1]["win_rate_ci95"], "curve": curve}
