"""The page of a saved linear reward model."""

from typing import TYPE_CHECKING

from rlhf_recipes.reward_modeling.linear.regressors import REGRESSOR_FILE

if TYPE_CHECKING:
    from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel


def card(model: "LinearRewardModel") -> str:
    """The `README.md` of a saved model: how to use it, and its strongest coefficients."""
    linear = model.coefficients is not None
    lines = [
        "# A reward model that can be read",
        "",
        f"{model.regressor_name()} on {len(model.features.features):,} named features of the text, fitted to "
        f"{model.rows:,} {model.trained_on}. Made with rlhf-recipes.",
        "",
        "```python",
        "from rlhf_recipes.reward_modeling.linear.reward import LinearReward",
        "",
        f'reward = LinearReward("this/folder"{"" if linear else ", trust=True"})',
        'reward(prompts=["The film is"], completions=[" a delight."])',
        'reward.explain("The film is", " a delight.")  # what moved the score',
        "```",
        "",
    ]
    if not linear:
        lines += [
            f"**`{REGRESSOR_FILE}` is a pickle: reading it runs code of whoever made it, and another version of "
            "scikit-learn may read it wrongly or not at all.** It is read with `trust=True` only. A linear "
            "regressor is saved as numbers instead.",
        ]
        return "\n".join([*lines, ""])
    lines += ["The strongest coefficients:", "", "| feature | meaning | unit | per unit | per std |"]
    lines += ["|---|---|---|---|---|"]
    for row in model.table()[:20]:
        cells = (row.feature.name, row.feature.meaning, row.feature.unit)
        shown = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        lines.append(f"| {shown} | {row.per_unit:.3g} | {row.per_std:.3g} |")
    return "\n".join([*lines, ""])
