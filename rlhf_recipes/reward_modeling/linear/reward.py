"""A regression on named features as a reward: one that can say why."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import is_blank

if TYPE_CHECKING:
    from rlhf_recipes.reward_modeling.linear.features import Contribution
    from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel


class LinearReward(ModelReward):
    """The score that a `rlhf_recipes.reward_modeling.linear.model.LinearRewardModel` gives to prompt and completion.

    `r = base + sum_k w_k (f_k - c_k)`, over named features `f_k` of the text, and then a rating, where the model holds
    a calibration. Each feature counts at most as far as the training texts went, so that the reward has bounds. It is
    open to what a person, or a policy, can read in its coefficients: use it beside others.

    Features are of prompt and completion as one text, or of the completion alone, as the model was trained. A text
    without a visible sign, such as an empty one, gets `None`; any other gets a number.

    Args:
        model (`str`, `Path` or `LinearRewardModel`):
            A folder that `LinearRewardModel.save` has written, or a model that is fitted or loaded already.
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder.
        calibrate (`bool`, *optional*, defaults to `True`):
            Whether to turn scores into ratings, where the model holds a calibration.
        trust (`bool`, *optional*, defaults to `False`):
            Whether to read a regressor that is a pickle, and features that are code of others; see
            `LinearRewardModel.load`.

    Raises:
        `FileNotFoundError`: if there is no such model in the folder.
        `ValueError`: if the model has not been fitted, or would run code and `trust` is not given.

    Example:

    ```python
    reward = LinearReward("runs/linear")
    reward(prompts=["The film is"], completions=[" a delight."])  # [1.5]
    reward.explain("The film is", " a delight.")[0]  # Contribution(feature='"delight"', value=0.6, contribution=0.9)
    ```
    """

    model: "LinearRewardModel"
    shown = ("model", "calibration")

    def __init__(
        self,
        model: "str | Path | LinearRewardModel",
        name: str | None = None,
        calibrate: bool = True,
        trust: bool = False,
    ) -> None:
        from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel

        self.hold(model, LinearRewardModel, name, trust)
        self.calibration = self.model.calibration if calibrate else None
        self.may_not_apply = self.model.features.completion_only

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> Series:
        """Score each prompt with its completion. `(B,)`"""
        rows = [row for row, texts in enumerate(zip(prompts, completions, strict=True)) if self._says(*texts)]
        scores = self.model.scores([prompts[row] for row in rows], [completions[row] for row in rows])
        if self.calibration is not None:
            scores = self.calibration(scores)
        result: Series = [None] * len(completions)
        for row, score in zip(rows, scores.tolist(), strict=True):
            result[row] = score
        return result

    def explain(self, prompt: Text, completion: Text, top: int | None = None) -> "list[Contribution]":
        """What moved the score of one row, before calibration: `(feature, value, contribution)`, strongest first."""
        found: list[Contribution] = self.model.explain(prompt, completion, top)
        return found

    def _says(self, prompt: Text, completion: Text) -> bool:
        texts = [completion] if self.model.features.completion_only else [prompt, completion]
        return any(not is_blank(as_text(text)) for text in texts)
