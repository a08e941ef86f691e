"""Who a row is of: users by name, their texts once, and what others say of these."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_recipes.statistics import is_missing, numbers
from rlhf_recipes.texts import Text


def user_key(user: Any) -> str | None:
    """A user's name as text; `None` for one who is not known: `None`, NaN, or a text without a visible sign.

    Raises:
        `ValueError`: if it is neither a text nor a whole number.
    """
    if is_missing(user):
        return None
    if isinstance(user, str):
        return user.strip() or None
    if isinstance(user, int | float | np.integer | np.floating) and not isinstance(user, bool) and user % 1 == 0:
        return str(int(user))  # a column with gaps makes 7.0 of 7
    raise ValueError(f"A user is a text or a whole number, or None where it is not known; given was {user!r}.")


def at_least_two(users: Sequence[Any]) -> list[str | None]:
    """The names of users, which must be two or more."""
    keys = [user_key(user) for user in users]
    known = sorted({key for key in keys if key is not None})
    if len(known) < 2:
        raise ValueError(
            f"There are rows of {len(known)} users ({shown(known)}). What is shared and what is one's own can be "
            "told apart from two users on; for a single head fit a linear reward model."
        )
    return keys


def means_by_others(others: Sequence[float | None] | None, rows: int) -> Tensor | None:
    """Mean ratings by others, NaN where there are none."""
    if others is None:
        return None
    if len(others) != rows:
        raise ValueError(f"There are {len(others)} mean ratings by others for {rows} rows; give one for each.")
    known = [0.0 if is_missing(value) else value for value in others]
    means = torch.from_numpy(numbers(known, "mean ratings by others"))
    means[[row for row, value in enumerate(others) if is_missing(value)]] = math.nan
    return means


def distinct_texts(
    prompts: Sequence[Text], completions: Sequence[Text]
) -> tuple[tuple[list[Text], list[Text]], Tensor]:
    """Each different text once, and which of them every row has: many users rate one text."""
    place: dict[str, int] = {}
    rows = [place.setdefault(json.dumps(pair), len(place)) for pair in zip(prompts, completions, strict=True)]
    first = {place_of: row for row, place_of in reversed(list(enumerate(rows)))}
    kept = [first[index] for index in range(len(place))]
    return ([prompts[row] for row in kept], [completions[row] for row in kept]), torch.tensor(rows, dtype=torch.long)


def shown(names: Sequence[Any], most: int = 5) -> str:
    """Some names for a message."""
    return (", ".join(map(str, names[:most])) or "none") + (", ..." if len(names) > most else "")
