"""A reward that knows for whom a text is: the score of a personal reward model, user by user."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_recipes.modeling.reading import check_finite
from rlhf_recipes.reward_modeling.personal.users import user_key
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.statistics import same_length
from rlhf_recipes.texts import Text

if TYPE_CHECKING:
    from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel

logger = logging.getLogger(__name__)


class PersonalReward(ModelReward):
    """What the user of each row thinks of prompt and completion, by a
    [`~rlhf_recipes.reward_modeling.personal.model.PersonalRewardModel`].

    `r(x, u) = w.h(x) + b + (A e_u).h(x) + a.e_u`, in rating units where the model was fitted to ratings, and in
    log-odds where it was fitted to pairs. The user is read from a column of the dataset. A row gets the shared score
    `w.h(x) + b` where the user is not known to the model, or is `None`, NaN or an empty text, and all rows do where
    there is no such column; how many did is logged once, because a misspelled column looks like that too.

    Languages, and what is made of empty texts, are those of the model's features. Features have bounds, so that the
    score has.

    Args:
        model (`str`, `Path` or `PersonalRewardModel`):
            A folder that `PersonalRewardModel.save` has written, or a model that is fitted or loaded already.
        user_column (`str`, *optional*, defaults to `"user"`):
            The dataset's column that says for whom the text is: names, or whole numbers.
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder.
        trust (`bool`, *optional*, defaults to `False`):
            Whether to import features that are code of others; see `PersonalRewardModel.load`.

    Attributes:
        shared (`int`): rows so far that got the shared score.

    Raises:
        `FileNotFoundError`: if there is no such model in the folder.
        `ValueError`: if the model has not been fitted; when called, if a user is neither a text nor a whole number.
        `RewardError`: when called, if a feature or a score is NaN or infinite.

    Example:

    ```python
    reward = PersonalReward("runs/personal")
    reward(prompts=["", ""], completions=["It roars.", "It roars."], user=["ann", "bob"])  # [1.2, -0.4]
    ```
    """

    model: "PersonalRewardModel"
    shown = ("user_column", "model")

    def __init__(
        self,
        model: "str | Path | PersonalRewardModel",
        user_column: str = "user",
        name: str | None = None,
        trust: bool = False,
    ) -> None:
        from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel

        self.hold(model, PersonalRewardModel, name, trust)
        self.user_column = user_column
        self.shared = 0

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion for the row's user. `(B,)`"""
        users = kwargs.get(self.user_column)
        if users is None:
            users = [None] * len(completions)
        same_length(prompts=prompts, completions=completions, **{f"values of {self.user_column!r}": users})
        scores: list[float] = self.model.scores(prompts, completions, users).tolist()
        self._count(users, self.user_column in kwargs)
        check_finite(scores, self.__name__, prompts, completions)
        return scores

    def _count(self, users: Sequence[Any], there: bool) -> None:
        known = set(self.model.users)
        shared = sum(1 for user in users if user_key(user) not in known)
        if shared and not self.shared:
            why = "their user is not known" if there else f"the dataset has no column {self.user_column!r}"
            logger.warning(
                "Personal reward %r: %d of %d rows get the shared score, because %s. This is said once; the attribute "
                "`shared` counts on.",
                *(self.__name__, shared, len(users), why),
            )
        self.shared += shared
