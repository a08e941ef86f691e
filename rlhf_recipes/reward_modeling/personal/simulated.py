"""Raters whose tastes are known, built on real ratings: to see what a personal reward model finds of them.

```
rating of text x by rater u = mean rating of x  +  leniency_u + sum_k taste_uk phi_k(x)  +  noise
                              by real people       known                                   a real rater's size
```
The features `phi` are length, exclamation marks, VADER's sentiment and words of three genres, each with mean 0 and
variance 1 over the training texts and held within -3 and 3. `taste_uk ~ N(0, taste^2)`, `leniency_u ~ N(0,
leniency^2)`, noise `~ N(0, within)`, with the variance `within` of one real vote around its text's true rating
([`~rlhf_recipes.data.raters.votes.RatingModel`]). That variance holds real tastes too, which nobody knows; so
these raters differ more than real ones.

**Nobody real has these tastes.** The figures say what the method finds where tastes of this kind and size exist.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.feedback.recognize import row_keys
from rlhf_recipes.data.raters.votes import RatingModel
from rlhf_recipes.reward_modeling.examples import in_share, parse_share
from rlhf_recipes.reward_modeling.linear.features import FeatureSet, Keywords, Length, Marks, Sentiment
from rlhf_recipes.reward_modeling.personal.users import user_key
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.statistics import Floats, numbers, same_length
from rlhf_recipes.texts import Text

COMEDY = ("comedy", "comedies", "comic", "funny", "humor", "humour", "laugh", "laughs", "joke", "jokes", "hilarious")
ROMANCE = ("romance", "romantic", "love", "lovers", "tender", "heart", "family", "drama", "emotional")
ACTION = ("action", "thriller", "thrills", "suspense", "horror", "war", "violence", "fight", "chase", "scary")
TASTES = ("words", "exclamation", "vader_compound", "comedy", "romance", "action")
MOST = 3.0  # standard deviations: a single text must not be all of a taste


@dataclass(frozen=True)
class Ratings:
    """Rows of ratings: of which text, whose (`None` where it is not known), and what."""

    texts: NDArray[np.int64]
    users: list[Any]
    ratings: Floats

    def first(self, count: int) -> NDArray[np.int64]:
        """Row numbers of the first `count` ratings of each user, or all of one who has fewer or is not known."""
        seen: Counter[Any] = Counter()
        kept = []
        for row, user in enumerate(self.users):
            seen[user] += 1
            if user is None or seen[user] <= count:
                kept.append(row)
        return np.array(kept, dtype=np.int64)

    def of_known(self) -> "Ratings":
        """Those of which it is known whose they are."""
        kept = [row for row, user in enumerate(self.users) if user is not None]
        return Ratings(self.texts[kept], [self.users[row] for row in kept], self.ratings[kept])


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
        texts: Texts,
        votes: Sequence[Sequence[float]],
        taste: float = 0.5,
        leniency: float = 0.5,
        seed: int = 0,
    ) -> "SimulatedRaters":
        """Draw so many raters for training texts.

        Args:
            votes (`Sequence[Sequence[float]]`): Those of real people on each text, for the size of the noise.
            taste, leniency (`float`, *optional*, default to 0.5): Standard deviations over raters, in rating units.

        Raises:
            `ValueError`: if there are fewer than two raters, a size is negative, or votes cannot tell the noise.
        """
        if count < 2 or taste < 0 or leniency < 0:
            raise ValueError(
                f"There are {count} raters, with tastes of {taste} and leniency of {leniency}; give 2 raters or more, "
                "and sizes of 0 or more."
            )
        values = _values(texts.prompts, texts.completions)
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
        return Ratings(texts.ravel(), [name for name in self.names for _ in range(each)], ratings.ravel())

    @property
    def names(self) -> list[str]:
        return [f"simulated-{index}" for index in range(len(self.tastes))]


def named(users: Sequence[Any], ratings: ArrayLike) -> Ratings:
    """Ratings of real users, each of a text of its own row.

    Raises:
        `ValueError`: if lengths differ, a rating is not finite, or a user is neither a text nor a whole number.
    """
    y = numbers(ratings, "ratings")
    same_length(users=users, ratings=y)
    return Ratings(np.arange(len(y)), [user_key(user) for user in users], y)


def take_share(rows: Dataset, share: str) -> Dataset:
    """Rows whose text, or whose prompt where they have one, lies in a share, as in training a reward model.

    Raises:
        `ValueError`: if it is no share, or no row lies in it.
    """
    low, high = parse_share(share)
    kept = [row for row, key in enumerate(row_keys(rows)) if in_share(key, low, high)]
    if not kept:
        raise ValueError(f"None of the {len(rows)} rows is in the share {share}. Widen it.")
    return rows.select(kept)


def simulate(
    raters: SimulatedRaters,
    train: Texts,
    means: ArrayLike,
    test: Texts,
    test_means: ArrayLike,
    each: int,
    test_each: int,
    seed: int = 0,
) -> tuple[Ratings, Ratings, Floats, Floats]:
    """Ratings of training and of held-out texts, and what is true of the latter.

    Args:
        means, test_means (`ArrayLike`): Mean ratings of the texts by real people.
        each, test_each (`int`): Ratings of each rater; fewer where there are not so many texts.

    Returns:
        `tuple`: ratings of the training texts and of the held-out ones; for each of the latter what the rater truly
        thinks of the text, and how far that is from its mean rating, each `(N_test,)`.
    """
    rows = raters.rate(raters.features(train.prompts, train.completions), means, min(each, np.size(means)), seed)
    features = raters.features(test.prompts, test.completions)
    asked = raters.rate(features, test_means, min(test_each, np.size(test_means)), seed + 1)
    place = {name: index for index, name in enumerate(raters.names)}
    opinions = raters.opinions(features)[[place[name] for name in asked.users], asked.texts]
    return rows, asked, numbers(test_means, "mean ratings")[asked.texts] + opinions, opinions


def _values(prompts: Sequence[Text], completions: Sequence[Text]) -> Floats:
    groups = (Length(), Marks(), Sentiment(), Keywords(COMEDY, "comedy"), Keywords(ROMANCE, "romance"),
              Keywords(ACTION, "action"))  # fmt: skip
    features = FeatureSet(groups)
    names = [feature.name for feature in features.features]
    values: Floats = features.matrix(prompts, completions)[:, [names.index(name) for name in TASTES]]
    return values
