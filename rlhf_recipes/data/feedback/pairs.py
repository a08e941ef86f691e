"""Feedback on two answers: which is better, and how many were for each."""

from collections.abc import Iterator

from datasets import Dataset

from rlhf_recipes.data.feedback.record import (
    IDENTICAL,
    MISSING,
    MISSING_VOTES,
    TIE,
    FeedbackSettings,
    Format,
    Read,
    Row,
    converted,
    counts,
    number,
)

VOTES_OF = ("chosen_votes", "rejected_votes")


def _read_pair(row: Row, settings: FeedbackSettings) -> Read:
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    clean: Row = {name: number(row[name], name) for name in PAIRS.optional if name in row}
    target = clean.get("target")
    if target is not None and not 0 <= target <= 1:
        raise ValueError(f"target is {target:g}; it is the chance that chosen is better, from 0 to 1.")
    odd += [TIE] if target == 0.5 else []
    return clean, odd + ([MISSING] if None in clean.values() else [])


def pairs_to_unpaired(dataset: Dataset) -> Dataset:
    """Each pair as two rows: the chosen text, labelled good, and then the rejected one, labelled bad.

    With a column `target` the labels are it and what it lacks to 1. Lost: which texts were compared, and a margin. The
    better of two bad texts is now simply good.
    """

    def apart(row: Row) -> Iterator[Row]:
        target = row.get("target")
        yield {"completion": row["chosen"], "label": True if target is None else target}
        yield {"completion": row["rejected"], "label": False if target is None else 1 - target}

    return converted(dataset, PAIRS, apart, used=(*PAIRS.columns, *VOTES_OF, *PAIRS.optional))


PAIRS = Format(
    "pairs",
    ("chosen", "rejected"),
    _read_pair,
    optional=("margin", "target"),
    conversions={"unpaired": pairs_to_unpaired},
)


def _read_votes(row: Row, settings: FeedbackSettings) -> Read:
    clean = counts(row, *VOTES_OF)
    chosen, rejected = clean.values()
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    if chosen is None or rejected is None or chosen + rejected == 0:
        odd.append(MISSING_VOTES)
    elif chosen == rejected:
        odd.append(TIE)
    return clean, odd


def _votes_note(rows: Dataset) -> Iterator[str]:
    sides = zip(rows["chosen_votes"], rows["rejected_votes"], strict=True)
    yield f"{sum(a is not None and a == b for a, b in sides)} of {len(rows)} rows are ties"


def votes_to_pairs(dataset: Dataset, smoothing: float = 0.0) -> Dataset:
    """Pairs with a soft label: the column `target` is the share of votes for `chosen`.

    `target = (chosen_votes + smoothing) / (chosen_votes + rejected_votes + 2 * smoothing)`; a smoothing of 1 is
    Laplace's rule, by which 1 to 0 is 2/3 and no certainty. Where the majority is for `rejected`, the two change
    places, so that `chosen` is never the worse and the target never below 0.5. A tie is 0.5 and keeps its order.

    Lost: how many voted. Without smoothing 1 to 0 is the same as 30 to 0.
    """
    if smoothing < 0:
        raise ValueError(f"smoothing is {smoothing}; give 0 or more votes.")

    def share(row: Row) -> Iterator[Row]:
        sides = [(row["chosen_votes"], row["chosen"]), (row["rejected_votes"], row["rejected"])]
        if None in (row["chosen_votes"], row["rejected_votes"]) or not row["chosen_votes"] + row["rejected_votes"]:
            return
        (most, chosen), (least, rejected) = sides if sides[0][0] >= sides[1][0] else sides[::-1]
        target = (most + smoothing) / (most + least + 2 * smoothing)
        yield {"chosen": chosen, "rejected": rejected, "target": target}

    return converted(dataset, VOTES, share, MISSING_VOTES)


VOTES = Format(
    "votes",
    ("chosen", "rejected", *VOTES_OF),
    _read_votes,
    notes=_votes_note,
    conversions={"pairs": votes_to_pairs},
)
