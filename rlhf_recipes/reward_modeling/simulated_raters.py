"""Raters whose tastes are known, built on real ratings: to see what a personal reward model finds of them.

```
rating of text x by rater u = mean rating of x  +  leniency_u + sum_k taste_uk phi_k(x)  +  noise
                              by real people       known                                   a real rater's size
```
The features `phi` are length, exclamation marks, VADER's sentiment and words of three genres, each with mean 0 and
variance 1 over the training texts and held within -3 and 3. `taste_uk ~ N(0, taste^2)`, `leniency_u ~ N(0,
leniency^2)`, noise `~ N(0, within)`, with the variance `within` of one real vote around its text's true rating
([`~rlhf_recipes.data.votes.RatingModel`]). That variance holds real tastes too, which nobody knows; so these raters
differ more than real ones.

**Nobody real has these tastes.** The figures say what the method finds where tastes of this kind and size exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.votes import Floats, RatingModel, numbers
from rlhf_recipes.reward_modeling.features import FeatureSet, Keywords, Length, Marks, Sentiment
from rlhf_recipes.rewards.base import Text

COMEDY = ("comedy", "comedies", "comic", "funny", "humor", "humour", "laugh", "laughs", "joke", "jokes", "hilarious")
ROMANCE = ("romance", "romantic", "love", "lovers", "tender", "heart", "family", "drama", "emotional")
ACTION = ("action", "thriller", "thrills", "suspense", "horror", "war", "violence", "fight", "chase", "scary")
TASTES = ("words", "exclamation", "vader_compound", "comedy", "romance", "action")
MOST = 3.0  # standard deviations: a single text must not be all of a taste


@dataclass(frozen=True)
class Ratings:
    """Rows of ratings: of which text, whose, and what. Each `(N,)`."""

    texts: NDArray[np.int64]
    users: NDArray[np.int64]
    ratings: Floats

    def first(self, count: int) -> "Ratings":
        """The first `count` ratings of each user, or all of one who has fewer."""
        order = np.argsort(self.users, kind="stable")
        sorted_users = self.users[order]
        starts = np.searchsorted(sorted_users, sorted_users, side="left")
        kept = np.sort(order[np.arange(len(order)) - starts < count])
        return Ratings(self.texts[kept], self.users[kept], self.ratings[kept])


@dataclass(frozen=True)
class SimulatedRaters:
    """Raters with known tastes.

    Args:
        tastes (`numpy.ndarray` of shape `(U, 6)`): Rating units for one standard deviation of each of `TASTES`.
        leniency (`numpy.ndarray` of shape `(U,)`): Rating units.
        noise (`float`): Standard deviation of a rating around what the rater truly thinks.
        center, scale (`numpy.ndarray` of shape `(6,)`): Of the features over the training texts.
    """

    tastes: Floats
    leniency: Floats
    noise: float
    center: Floats
    scale: Floats

    @classmethod
    def draw(
        cls,
        count: int,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        votes: Sequence[Sequence[float]],
        taste: float = 0.5,
        leniency: float = 0.5,
        seed: int = 0,
    ) -> "SimulatedRaters":
        """Draw raters for training texts.

        Args:
            count (`int`): How many.
            prompts, completions (`Sequence` of length N): Training texts.
            votes (`Sequence[Sequence[float]]` of length N): Those of real people, for the size of the noise.
            taste (`float`, *optional*, defaults to 0.5), leniency (`float`, *optional*, defaults to 0.5):
                Standard deviations over raters, in rating units.
            seed (`int`, *optional*, defaults to 0): Of the draw.

        Raises:
            `ValueError`: if there are fewer than two raters, a size is negative, or votes cannot tell the noise.
        """
        if count < 2 or taste < 0 or leniency < 0:
            raise ValueError(
                f"There are {count} raters, with tastes of {taste} and leniency of {leniency}; give 2 raters or more, "
                "and sizes of 0 or more."
            )
        values = _values(prompts, completions)
        center, scale = values.mean(axis=0), values.std(axis=0)
        scale[scale == 0] = np.inf  # what no text has is nobody's taste
        generator = np.random.default_rng(seed)
        tastes = taste * generator.standard_normal((count, len(TASTES)))
        noise = float(np.sqrt(RatingModel.fit(votes).within))
        return cls(tastes, leniency * generator.standard_normal(count), noise, center, scale)

    def features(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Floats:
        """What tastes are about, standardized. `(N, 6)`"""
        return np.clip((_values(prompts, completions) - self.center) / self.scale, -MOST, MOST)

    def opinions(self, features: Floats) -> Floats:
        """How much better or worse than its mean rating each rater finds each text. `(N, 6) -> (U, N)`"""
        return self.tastes @ features.T + self.leniency[:, None]

    def rate(self, features: Floats, means: ArrayLike, each: int, seed: int = 0) -> Ratings:
        """Have every rater rate `each` texts, drawn without replacement for each.

        Args:
            features (`numpy.ndarray` of shape `(N, 6)`): As `features` gives them.
            means (`ArrayLike` of shape `(N,)`): Mean ratings of the texts by real people.
            each (`int`): Ratings of each rater.
            seed (`int`, *optional*, defaults to 0): Of texts and noise.

        Raises:
            `ValueError`: if there are fewer texts than ratings wanted of each.
        """
        y = numbers(means, "mean ratings")
        if not 1 <= each <= len(y):
            raise ValueError(f"Each rater is to rate {each} texts, and there are {len(y)}. Give 1 to {len(y)}.")
        generator = np.random.default_rng(seed)
        count = len(self.tastes)
        texts = np.stack([generator.permutation(len(y))[:each] for _ in range(count)])  # (U, each)
        truth = y[texts] + np.take_along_axis(self.opinions(features), texts, axis=1)
        ratings = truth + self.noise * generator.standard_normal(truth.shape)
        return Ratings(texts.ravel(), np.repeat(np.arange(count), each), ratings.ravel())


def _values(prompts: Sequence[Text], completions: Sequence[Text]) -> Floats:
    groups = (Length(), Marks(), Sentiment(), Keywords(COMEDY, "comedy"), Keywords(ROMANCE, "romance"),
              Keywords(ACTION, "action"))  # fmt: skip
    features = FeatureSet(groups)
    names = [feature.name for feature in features.features]
    values: Floats = features.matrix(prompts, completions)[:, [names.index(name) for name in TASTES]]
    return values
