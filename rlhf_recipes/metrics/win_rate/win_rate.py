"""How often the best of n by score beats a random text. Loaded by `evaluate`; see `rlhf_recipes.metrics`."""

import datasets
import evaluate

from rlhf_recipes.reward_modeling.evaluation.figures import win_rate_curve

DESCRIPTION = "Probability that the text a score chooses among n beats a random one in quality, for n = 1, 2, ..."
INPUTS = """
Args:
    predictions: score of each text.
    references: quality of each text, such as its rating.
    prompts: what each text answers (default: all texts are one pool).
    max_n: largest n.
Returns:
    win_rate, that of the largest n, its _ci95, and curve: a list of n, win_rate, win_rate_ci95, ceiling, prompts.
"""
CITATION = "Nakano et al. (2021). WebGPT: Browser-assisted question-answering with human feedback. arXiv 2112.09332."


class WinRate(evaluate.Metric):
    def _info(self):
        column = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
        )

    def _compute(self, predictions, references, **options):
        curve = win_rate_curve(predictions, references, **options)
        last = curve[-1]
        return {"win_rate": last["win_rate"], "win_rate_ci95": last["win_rate_ci95"], "curve": curve}
