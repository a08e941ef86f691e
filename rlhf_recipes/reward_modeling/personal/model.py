"""A reward model that knows who is asking: one shared head, and of each user a few numbers that bend it.

```
r(x, u) = w.h(x) + b  +  (A e_u).h(x) + a.e_u        e_u ~ N(0, I_k)
          shared head    what user u likes, leniency
```
`h(x)` are features of the text, out of an encoder that stays as it is; `A (F, k)` are the k directions in which tastes
differ, and `a (k,)` says how leniency goes with them. It is a linear model with random coefficients (Laird and Ware
1982, Biometrics 38) whose covariance `A A^T` has a low rank. The prior pulls a user of few ratings to the shared head,
as the penalties of regularized multi-task learning do (Evgeniou and Pontil, KDD 2004). Reward models with low-rank
users for language models are in arXiv 2504.14439 (LoRe) and arXiv 2503.06358 (reward factorization).

The users are integrated out, and the rest is fitted to the likelihood that is left. Ratings are `r + N(0, noise)`,
pairs are Bradley and Terry's `P(chosen) = sigmoid(r(chosen, u) - r(rejected, u))`.

```python
model = PersonalRewardModel([{"Embedding": {"model": "starter/minilm-l6"}}])
model.fit_ratings(prompts, completions, ratings, users)
model.scores([""], ["A quiet, funny film."], ["ann"])  # (1,)
model.add_user("bob", ["", ""], ["Too loud.", "I laughed."], [-2, 3])  # in closed form
model.save("runs/personal")  # PersonalReward("runs/personal") is the reward
```
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors
from torch import Tensor

from rlhf_recipes import filenames
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.linear.features import NAMED, FeatureGroup, FeatureSet
from rlhf_recipes.reward_modeling.linear.standardize import Standardization
from rlhf_recipes.reward_modeling.personal.coefficients import RandomCoefficients, Rows, choose_penalties, fit
from rlhf_recipes.reward_modeling.personal.users import (
    at_least_two,
    distinct_texts,
    means_by_others,
    shown,
    user_key,
)
from rlhf_recipes.statistics import numbers, same_length
from rlhf_recipes.texts import Text

TENSORS_FILE = "personal_reward.safetensors"
FORMAT = 1
# This project's, though not in GROUPS.
HIDDEN_FEATURES = "rlhf_recipes.reward_modeling.personal.features:HiddenFeatures"


class PersonalRewardModel:
    """A shared head and low-rank users on features of the text; see the docstring of this module.

    Users are told apart by their name as text: `7`, `7.0` and `"7"` are one user. `None`, NaN and an empty text mean
    that it is not known who it was: such a row is scored by the shared head, and in training it is taken for one of an
    average user. So are rows of a user that the model does not know.

    Args:
        features (`Sequence` or [`~rlhf_recipes.reward_modeling.linear.features.FeatureSet`], *optional*):
            Groups of features, as objects or as `rlhf_recipes.reward_modeling.linear.features.make_group` takes them.
            All dense. [`~rlhf_recipes.reward_modeling.personal.features.HiddenFeatures`] are those of a trained reward
            model. Default: all that are named and need nothing else.
        rank (`int`, *optional*, defaults to 8):
            Directions in which tastes may differ, leniency among them. Each user is that many numbers.
        shared_penalty (`float`, *optional*), taste_penalty (`float`, *optional*):
            What is added to the negative log-likelihood of standardized ratings: `shared_penalty |w|^2 / (2 noise)`
            and `taste_penalty |A|^2 / 2`. Default: those that predict a held-out fifth of the texts best.
        seed (`int`, *optional*, defaults to 0): Which fifth is held out.

    Raises:
        `ValueError`: if the rank is below 1 or a penalty is not above 0.
    """

    def __init__(
        self,
        features: FeatureSet | Sequence[FeatureGroup | str | Mapping[str, Any]] = NAMED,
        rank: int = 8,
        shared_penalty: float | None = None,
        taste_penalty: float | None = None,
        seed: int = 0,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank is {rank}; give 1 or more directions, or fit a linear reward model for one head.")
        for name, penalty in (("shared_penalty", shared_penalty), ("taste_penalty", taste_penalty)):
            if penalty is not None and not 0 < penalty < math.inf:
                raise ValueError(f"{name} is {penalty}; give a number above 0, or None to have it chosen.")
        self.features = features if isinstance(features, FeatureSet) else FeatureSet(tuple(features))  # type: ignore[arg-type]
        self.rank, self.seed = rank, seed
        self.wanted = self.penalties = shared_penalty, taste_penalty
        self.trained_on: str | None = None
        self.rows = 0
        self.users: list[str] = []
        self.standardization: Standardization | None = None
        self._heads: RandomCoefficients | None = None
        self._precision = torch.zeros(0, rank, rank, dtype=torch.float64)  # (U, k, k)  of e_u, after its ratings
        self._information = torch.zeros(0, rank, dtype=torch.float64)  # (U, k)  e_u = precision^-1 information

    def __repr__(self) -> str:
        return f"PersonalRewardModel(users={len(self.users)}, rank={self.rank}, trained_on={self.trained_on!r})"

    # --- Fitting ---------------------------------------------------------------------------------

    def learn_features(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """Learn features and their standardization from training texts, which both fits do themselves; `matrix` of
        these texts."""
        self.features = self.features.fit(prompts, completions)
        blocks = self.features.blocks(prompts, completions)
        for group, block in zip(self.features.groups, blocks, strict=True):
            if not isinstance(block, np.ndarray):
                raise ValueError(
                    f"{type(group).__name__} makes {block.shape[1]} sparse columns, and every user would need a "
                    "weight for each. Personal heads take dense features: Embedding, HiddenFeatures or named ones."
                )
        # Tastes would be sought in hundreds of directions at once if each number of an encoder had variance 1.
        self.standardization = Standardization.fit(self.features, blocks, together=True)
        return _with_ones(self.standardization(blocks))

    def fit_ratings(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ratings: ArrayLike,
        users: Sequence[Any],
        others: Sequence[float | None] | None = None,
    ) -> "PersonalRewardModel":
        """Fit ratings, of which it is known who gave them. Scores are then in their unit.

        Args:
            prompts, completions (`Sequence` of length N): Text or messages.
            ratings (`ArrayLike` of shape `(N,)`): One user's rating of one text each.
            users (`Sequence` of length N): Whose rating it is.
            others (`Sequence` of length N, *optional*):
                Mean rating of the same text by others, `None` where there is none. The shared head is fitted to it,
                and tastes to what is left: with it fewer ratings tell a taste.

        Raises:
            `ValueError`: if lengths differ, a rating is not finite, all ratings are the same, or there are fewer than
                two users.
        """
        same_length(users=users, prompts=prompts, texts=completions)
        keys = at_least_two(users)
        texts, text_of = distinct_texts(prompts, completions)
        return self.fit_matrix(self.learn_features(*texts), text_of, ratings, keys, others)

    def fit_matrix(
        self,
        matrix: Tensor,
        text_of: ArrayLike,
        ratings: ArrayLike,
        users: Sequence[Any],
        others: Sequence[float | None] | None = None,
    ) -> "PersonalRewardModel":
        """As `fit_ratings`, after `learn_features`, whose matrix many models can share.

        Args:
            matrix (`Tensor` of shape `(T, F + 1)`): Of all texts.
            text_of (`ArrayLike` of shape `(N,)`): Which of them each rating is of.
        """
        keys, y = at_least_two(users), torch.from_numpy(numbers(ratings, "ratings"))
        rows = torch.as_tensor(np.asarray(text_of), dtype=torch.long)
        if not len(y) == len(rows) == len(keys) or float(y.max() - y.min()) == 0.0:
            raise ValueError(
                f"There are {len(y)} ratings for {len(rows)} texts, from {y.min():g} to {y.max():g}. Give one for "
                "each text, and not the same for all."
            )
        used, place = rows.unique(return_inverse=True)
        self._fit(Rows(matrix[used], place, None, y, self._numbered(keys), means_by_others(others, len(y))))
        self.trained_on = "ratings"
        return self

    def fit_pairs(
        self, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text], users: Sequence[Any]
    ) -> "PersonalRewardModel":
        """Fit which of two texts each user prefers. Scores are log-odds; pairs say nothing of leniency.

        Raises:
            `ValueError`: if lengths differ, no pair differs in its features, or there are fewer than two users.
        """
        same_length(users=users, prompts=prompts, chosen=chosen, rejected=rejected)
        keys = at_least_two(users)
        texts, row_of = distinct_texts([*prompts, *prompts], [*chosen, *rejected])
        z = self.learn_features(*texts)
        first, second = row_of[: len(chosen)], row_of[len(chosen) :]
        if not (z[first] - z[second]).abs().sum():
            raise ValueError(f"In all {len(chosen)} pairs the features of both texts are the same: nothing to learn.")
        self._fit(Rows(z, first, second, None, self._numbered(keys)))
        self.trained_on = "pairs"
        return self

    def add_user(
        self,
        user: Any,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ratings: ArrayLike,
        others: Sequence[float | None] | None = None,
    ) -> NDArray[np.float64]:
        """Learn a new user, or more of one that is known, from ratings, and give the [`taste`]; everyone else stays as
        they are.

        The posterior mean of `e_u`, in closed form: `e = (P + B^T B / noise)^-1 (q + B^T (y - w.h - b) / noise)`, with
        `B = [h, 1] [A; a]` of its texts, and `P = I`, `q = 0` before the first rating. Ratings given one after the
        other, or all at once, come to the same. With `others`, the mean rating of a text by others stands for `w.h`,
        as in `fit_ratings`: a model that was fitted with them expects so little noise.

        Raises:
            `ValueError`: if the model was not fitted to ratings, or the user has no name or no ratings.
        """
        heads = self._fitted("ratings", "add_user_pairs")
        key = self._one_user(user, completions)
        y = torch.from_numpy(numbers(ratings, "ratings"))
        same_length(prompts=prompts, texts=completions, ratings=y)
        z, means = self.matrix(prompts, completions), means_by_others(others, len(y))
        if means is not None:
            y = torch.where(means.isnan(), y, y - means + z @ heads.shared)
        precision, information = heads.evidence(z, y, torch.full_like(y, 1.0 / heads.noise))
        index = self._place(key)
        self._precision[index] += precision
        self._information[index] += information
        return self.taste(key)

    def add_user_pairs(
        self, user: Any, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text]
    ) -> NDArray[np.float64]:
        """Learn a new user from pairs, and give the [`taste`]; everyone else stays as they are. A user who is known is
        learned anew. There is no closed form: the posterior is Laplace's, the Gaussian around the most likely `e_u`.

        Raises:
            `ValueError`: if the model was not fitted to pairs, or the user has no name or no pairs.
        """
        heads = self._fitted("pairs", "add_user")
        key = self._one_user(user, chosen)
        same_length(prompts=prompts, chosen=chosen, rejected=rejected)
        z = self.matrix(prompts, chosen) - self.matrix(prompts, rejected)
        precision, information = heads.evidence_of_pairs(z)
        index = self._place(key)
        self._precision[index] = torch.eye(self.rank, dtype=torch.float64) + precision
        self._information[index] = information
        return self.taste(key)

    # --- Judging ---------------------------------------------------------------------------------

    def scores(
        self, prompts: Sequence[Text], completions: Sequence[Text], users: Sequence[Any] | None = None
    ) -> NDArray[np.float64]:
        """What each user thinks of the text; without users, or of those not known, the shared score. `(B,)`"""
        if not len(completions):
            return np.zeros(0)
        return self.scores_of(self.matrix(prompts, completions), users)

    def scores_of(self, matrix: Tensor, users: Sequence[Any] | None = None) -> NDArray[np.float64]:
        """As `scores`, of texts whose features are computed already. `(B, F + 1) -> (B,)`"""
        heads = self._fitted()
        shared = matrix @ heads.shared
        if users is None:
            return np.asarray(shared.numpy())
        same_length(users=users, texts=matrix)
        place = {key: index for index, key in enumerate(self.users)}
        # A last row of zeros: whoever is not known.
        rows = torch.tensor([place.get(user_key(user) or "", len(self.users)) for user in users], dtype=torch.long)
        tastes = torch.cat([self._tastes(), torch.zeros(1, self.rank, dtype=torch.float64)])
        return np.asarray((shared + ((matrix @ heads.loadings) * tastes[rows]).sum(dim=1)).numpy())

    def taste(self, user: Any) -> NDArray[np.float64]:
        """The posterior mean of `e_u`. `(k,)`

        Raises:
            `ValueError`: if the user is not known.
        """
        key = user_key(user)
        if key not in self.users:
            raise ValueError(f"The user {user!r} is not known; the model knows {shown(self.users)}.")
        return np.asarray(self._tastes()[self.users.index(key)].numpy())

    def matrix(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """Standardized features, and a column of ones. `(B, F + 1)`

        Raises:
            `ValueError`: if the model has not been fitted.
        """
        if self.standardization is None:
            raise ValueError("The model has not been fitted yet: call fit_ratings or fit_pairs, or load one.")
        return _with_ones(self.standardization(self.features.blocks(prompts, completions)))

    def facts(self) -> dict[str, Any]:
        """What was fitted, for `metrics.json`: users, rows, the variance of a rating's noise, and penalties."""
        facts = {"users": len(self.users), "train_rows": self.rows, "noise": self._fitted().noise}
        return facts | dict(zip(("shared_penalty", "taste_penalty"), self.penalties, strict=True))

    # --- Saving ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the model into a folder, which is made if needed: JSON, and safetensors in float64.

        The names of the users are in the JSON. An encoder is named there and not copied.
        """
        heads, standardization = self._fitted(), self.standardization
        assert standardization is not None
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.from_numpy(values) for name, values in vars(standardization).items()}
        tensors |= {"shared": heads.shared, "loadings": heads.loadings}
        tensors |= {"precision": self._precision, "information": self._information}
        contents = as_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        (target / TENSORS_FILE).write_bytes(contents)
        data: dict[str, Any] = {"format": FORMAT, "trained_on": self.trained_on, "rows": self.rows, "rank": self.rank}
        data |= {"noise": heads.noise, "penalties": list(self.penalties), "users": self.users}
        write_json(target / filenames.PERSONAL_REWARD, data | {"features": self.features.to_json()})
        return target

    @classmethod
    def load(cls, folder: str | Path, trust: bool = False) -> "PersonalRewardModel":
        """Read a model that `save` has written.

        Args:
            trust (`bool`, *optional*, defaults to `False`):
                Whether to import feature groups that are not of this project, which is code of whoever made the
                folder.

        Raises:
            `FileNotFoundError`: if there is no such model in the folder.
            `ValueError`: if its files cannot be read or do not fit each other, or would run code and `trust` is not
                given.
        """
        path = Path(folder) / filenames.PERSONAL_REWARD
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {filenames.PERSONAL_REWARD} in {str(folder)!r}; a personal reward model has one."
            )
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} has format {data.get('format')!r}; this version reads format {FORMAT}.")
        foreign = [g["kind"] for g in data["features"]["groups"] if ":" in g["kind"] and g["kind"] != HIDDEN_FEATURES]
        features = FeatureSet.from_json(data["features"], trust=trust or not foreign)
        model = cls(features, data["rank"], *data["penalties"])
        model.trained_on, model.rows, model.users = data["trained_on"], data["rows"], data["users"]
        tensors = load_file(path.parent / TENSORS_FILE)
        center, scale, low, high = (tensors[name].numpy() for name in ("center", "scale", "low", "high"))
        model.standardization = Standardization(center, scale, np.zeros_like(center), low, high)  # std: not asked here
        model._heads = RandomCoefficients(tensors["shared"], tensors["loadings"], data["noise"])
        model._precision, model._information = tensors["precision"], tensors["information"]
        shapes = (len(features.features) + 1, len(model.users))
        if (len(tensors["shared"]), len(tensors["precision"])) != shapes:
            raise ValueError(
                f"The files in {str(folder)!r} do not belong together: {shapes[0] - 1} features and {shapes[1]} users "
                f"in {path.name}, {len(tensors['shared']) - 1} and {len(tensors['precision'])} in {TENSORS_FILE}."
            )
        return model

    # --- Inside ----------------------------------------------------------------------------------

    def _numbered(self, keys: Sequence[str | None]) -> Tensor:
        """Users as numbers, in the order in which they first come; one more than the last for those not known."""
        self.users = list(dict.fromkeys(key for key in keys if key is not None))
        place: dict[str | None, int] = {key: index for index, key in enumerate(self.users)}
        return torch.tensor([place.get(key, len(self.users)) for key in keys], dtype=torch.long)

    def _fit(self, rows: Rows) -> None:
        shared, taste = choose_penalties(rows, self.rank, len(self.users), *self.wanted, seed=self.seed)
        self._heads, posterior = fit(rows, self.rank, len(self.users), shared, taste)
        self.penalties = shared, taste
        self._precision, self._information = posterior
        self.rows = len(rows.users)

    def _fitted(self, on: str | None = None, instead: str = "") -> RandomCoefficients:
        if self._heads is None:
            raise ValueError("The model has not been fitted yet: call fit_ratings or fit_pairs, or load one.")
        if on is not None and self.trained_on != on:
            raise ValueError(f"The model was fitted to {self.trained_on}, so a user is added by {instead}.")
        return self._heads

    def _one_user(self, user: Any, completions: Sequence[Text]) -> str:
        key = user_key(user)
        if key is None or not len(completions):
            raise ValueError(f"The user is {user!r} with {len(completions)} rows; give a name, and one row or more.")
        return key

    def _place(self, key: str) -> int:
        """Where a user stands; a new one is put at the end, with the prior alone."""
        if key not in self.users:
            self.users.append(key)
            self._precision = torch.cat([self._precision, torch.eye(self.rank, dtype=torch.float64)[None]])
            self._information = torch.cat([self._information, torch.zeros(1, self.rank, dtype=torch.float64)])
        return self.users.index(key)

    def _tastes(self) -> Tensor:
        if not len(self.users):
            return self._information
        return torch.linalg.solve(self._precision, self._information)  # (U, k)


def _with_ones(z: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.hstack([z, np.ones((len(z), 1))]))
