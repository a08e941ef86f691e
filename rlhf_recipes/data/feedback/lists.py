"""Feedback on a list of answers: their order, or the best and the worst of them."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

from datasets import Dataset

from rlhf_recipes.data.feedback.record import (
    ALL_TIED,
    FEW,
    MISSING,
    SAME_PLACE,
    FeedbackSettings,
    Format,
    Read,
    Row,
    converted,
    count_note,
    number,
)
from rlhf_recipes.starting.options import check_choice

logger = logging.getLogger(__name__)
TIES, COPIES = "ties", "identical completions"


def numbers_of_each(values: Any, name: str, length: int) -> list[float | None]:
    """A list with a number for each of `length` completions."""
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, but is {values!r:.60}.")
    if len(values) != length:
        raise ValueError(f"there are {length} completions and {len(values)} {name}; give one for each.")
    return [number(value, f"{name}[{place}]") for place, value in enumerate(values)]


def _compared_pairs(dataset: Dataset, format: Format, compared: Callable[[Row], list[tuple[int, int]]]) -> Dataset:
    """A pair for each two places of a list that are compared, the better first; none of two copies of one text."""
    copies = 0

    def pairs(row: Row) -> Iterator[Row]:
        nonlocal copies
        for better, worse in compared(row):
            chosen, rejected = row["completions"][better], row["completions"][worse]
            if chosen == rejected:
                copies += 1
            else:
                yield {"chosen": chosen, "rejected": rejected}

    made = converted(dataset, format, pairs, "no two completions to compare", source_row=True)
    if copies:
        logger.warning("Left out %d pairs of two identical texts.", copies)
    return made


def _read_ranking(row: Row, settings: FeedbackSettings) -> Read:
    completions = row["completions"]
    ranks = numbers_of_each(row["ranks"], "ranks", len(completions))
    for place, rank in enumerate(ranks):
        if rank is None or rank < 1:
            given = "missing" if rank is None else f"{rank:g}"
            raise ValueError(f"ranks[{place}] is {given}; ranks are numbers from 1 (best) on.")
    odd = [FEW] if len(ranks) < 2 else [ALL_TIED] if len(set(ranks)) == 1 else []
    odd += [TIES] if len(set(ranks)) < len(ranks) else []
    odd += [COPIES] if len({json.dumps(completion) for completion in completions}) < len(completions) else []
    return {"ranks": ranks}, odd


def _ranking_notes(rows: Dataset) -> Iterator[str]:
    ties = sum(isinstance(ranks, list) and len(set(ranks)) < len(ranks) for ranks in rows["ranks"])
    yield count_note(rows["completions"], " completions a row")
    yield f"ties in {ties} of {len(rows)} rows"


def rankings_to_pairs(dataset: Dataset, which: Literal["all", "adjacent"] = "all") -> Dataset:
    """A pair for every two completions of different rank.

    K completions without ties give K(K-1)/2 pairs, or K-1 if only neighbours in rank are compared. The pairs of one
    ranking depend on each other: keep them in one split and, if you can, in one batch (Ouyang et al. 2022, section
    3.5, where shuffled pairs overfit). The column `source_row` says where each comes from.

    They come in the order of the rows, then of the better rank, then of the worse. Lost: that the pairs belong
    together, the ties, and with `"adjacent"` nothing but repetition.
    """
    check_choice("which", which, ("all", "adjacent"))

    def compared(row: Row) -> list[tuple[int, int]]:
        ranks = row["ranks"]
        level = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
        order = sorted(range(len(ranks)), key=lambda place: ranks[place])
        pairs = [(one, other) for one in order for other in order if ranks[one] < ranks[other]]
        if which == "all":
            return pairs
        return [(one, other) for one, other in pairs if level[ranks[other]] == level[ranks[one]] + 1]

    return _compared_pairs(dataset, RANKINGS, compared)


def rankings_to_ratings(dataset: Dataset) -> Dataset:
    """Each completion by itself, with the share of the others that it beats as its score; a tie counts half.

    The best of K without ties gets 1, the worst 0, and `score = (K - mid-rank) / (K - 1)`. Lost: scores of different
    prompts no longer compare, as the best of a bad list gets 1 too. `source_row` says which belong together.
    """

    def rated(row: Row) -> Iterator[Row]:
        ranks = row["ranks"]
        for completion, rank in zip(row["completions"], ranks, strict=True):
            beaten = sum(rank < other for other in ranks) + 0.5 * (sum(rank == other for other in ranks) - 1)
            yield {"completion": completion, "score": beaten / (len(ranks) - 1) if len(ranks) > 1 else 0.5}

    return converted(dataset, RANKINGS, rated, source_row=True)


RANKINGS = Format(
    "rankings",
    ("completions", "ranks"),
    _read_ranking,
    lists=("completions", "ranks"),
    notes=_ranking_notes,
    conversions={"pairs": rankings_to_pairs, "ratings": rankings_to_ratings},
)


def _read_best_worst(row: Row, settings: FeedbackSettings) -> Read:
    count = len(row["completions"])
    clean: Row = {}
    for name in ("best", "worst"):
        place = number(row[name], name)
        if place is not None and (not place.is_integer() or not 0 <= place < count):
            raise ValueError(f"{name} is {place:g}; it is a place in the list, from 0 to {count - 1}.")
        clean[name] = None if place is None else int(place)
    missing = None in clean.values()
    odd = [MISSING] if missing else [SAME_PLACE] if clean["best"] == clean["worst"] else []
    return clean, odd + ([FEW] if count < 2 else [])


def best_worst_to_pairs(dataset: Dataset, which: Literal["implied", "extremes"] = "implied") -> Dataset:
    """The pairs that follow from a best and a worst completion.

    The best beats all others and all others beat the worst: 2K-3 pairs of K completions, or the one of best and worst.
    For each row come the best against all others, then the others against the worst. As in [`rankings_to_pairs`], they
    depend on each other, and `source_row` says where each is from. Lost: that they belong together; with `"extremes"`
    the completions between.
    """
    check_choice("which", which, ("implied", "extremes"))

    def compared(row: Row) -> list[tuple[int, int]]:
        best, worst = int(row["best"]), int(row["worst"])
        if which == "extremes":
            return [(best, worst)]
        between = [place for place in range(len(row["completions"])) if place not in (best, worst)]
        over = [(best, place) for place in range(len(row["completions"])) if place != best]
        return over + [(place, worst) for place in between]

    return _compared_pairs(dataset, BEST_WORST, compared)


BEST_WORST = Format(
    "best_worst",
    ("completions", "best", "worst"),
    _read_best_worst,
    lists=("completions",),
    notes=lambda rows: [count_note(rows["completions"], " completions a row")],
    conversions={"pairs": best_worst_to_pairs},
)
