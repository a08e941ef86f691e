"""Feedback as the options of a run ask for it: checked, cleaned, weighted, and in the format that is wanted."""

from datasets import Dataset

from rlhf_recipes.data.feedback.convert import convert
from rlhf_recipes.data.feedback.formats import WEIGHT, Check, FeedbackArguments, FeedbackSettings
from rlhf_recipes.data.feedback.recognize import normalize
from rlhf_recipes.data.feedback.weights import add_weights


def read_rows(rows: Dataset, args: FeedbackArguments) -> tuple[Dataset, Check]:
    """Check and clean rows as the options say, give them weights, and put them into another format.

    Votes are counted before a conversion takes them away; labels and groups after it, which may make them.

    Raises:
        `ValueError`: as [`normalize`], [`convert`] and [`~rlhf_recipes.data.feedback.weights.add_weights`].
    """
    clean, found = normalize(rows, args.settings())
    if args.weights == "votes":
        clean = add_weights(clean, "votes")
    if args.wanted is not None:
        clean, _ = convert(clean, args.wanted, FeedbackSettings(found.format.kind), **(args.convert_args or {}))
    if args.weights == "votes" and WEIGHT not in clean.column_names:
        raise ValueError(f"{found.format.kind} become {args.wanted} without their weights. Leave out weights.")
    if args.weights in ("labels", "groups"):
        clean = add_weights(clean, "labels" if args.weights == "labels" else "groups")
    return clean, found
