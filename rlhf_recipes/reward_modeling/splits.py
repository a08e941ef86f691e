"""The three splits of a run, read, cleaned and accounted for."""

import json
import logging
from dataclasses import dataclass, replace
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import kwargs_of
from rlhf_recipes.data.chat_rows import Origin, TemplateArguments, check_items
from rlhf_recipes.data.cleaning.steps import CleaningArguments, Table, run, steps_from
from rlhf_recipes.data.feedback.files import in_split
from rlhf_recipes.data.feedback.formats import FORMATS, SAID, Check, Feedback, FeedbackArguments, Kind
from rlhf_recipes.data.feedback.record import ANSWERS
from rlhf_recipes.data.loading import DataArguments, NoSuchSplit
from rlhf_recipes.data.raters.agreement import agreement_metrics
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.debias import balance_pairs
from rlhf_recipes.reward_modeling.examples import read_feedback
from rlhf_recipes.reward_modeling.losses.base import Objective
from rlhf_recipes.reward_modeling.scored import Texts

logger = logging.getLogger(__name__)
IMAGES = {f"{side}image{s}" for side in ("", "chosen_", "rejected_") for s in ("", "s")}


@dataclass(frozen=True)
class Splits:
    """What a run trains, calibrates and is measured on: rows of one format."""

    train: Dataset
    validation: Dataset | None  # None where the dataset has no such split
    test: Dataset
    kind: Kind
    checks: dict[str, Check]  # what was recognized, counted and left out, of each split
    cleaning: Table  # what was done to the training rows

    def __str__(self) -> str:
        lines = [f"Feedback      {self.checks['train'].format}"]
        if self.kind != self.checks["train"].format.kind:
            lines.append(f"Converted to  {self.kind}")
        counts = [f"{name} {len(rows):,}" for name, rows in self._named()]
        lines.append(f"Rows          {', '.join(counts)}")
        for name, check in self.checks.items():
            lines += [f"Left out      {count:,} of {name}: {why}" for why, count in check.left_out.items()]
        if any(counts.before != counts.after or counts.changed for _, counts in self.cleaning.steps):
            lines.append(f"Cleaning of the training rows\n{self.cleaning}")
        return "\n".join(lines)

    @property
    def train_texts(self) -> int:
        """How many texts there are in the training rows."""
        if "completions" in self.train.column_names:
            return sum(map(len, self.train["completions"]))
        return len(self.train) * (2 if "chosen" in self.train.column_names else 1)

    def facts(self) -> dict[str, Any]:
        """The same for the card, with how far the raters agree, where the rows have their votes."""
        of_split = {name: self.checks[name].as_dict() | {"kept": len(rows)} for name, rows in self._named()}
        return {"splits": of_split, "cleaning": json.loads(self.cleaning.as_json()), "agreement": self._agreement()}

    def _agreement(self) -> dict[str, Any] | None:
        if self.kind != "ratings" or "votes" not in self.test.column_names:
            return None
        try:
            return agreement_metrics(self.test["votes"])
        except (ImportError, ValueError) as error:
            logger.warning("How far the raters agree is not measured: %s", error)
            return None

    def _named(self) -> list[tuple[str, Dataset]]:
        named = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return [(name, rows) for name, rows in named if rows is not None]


def load_splits(
    data_args: DataArguments, feedback_args: FeedbackArguments, cleaning_args: CleaningArguments, args: RewardConfig
) -> Splits:
    """Read all splits, and clean the training rows. A missing split is found out before training, not after.

    The rows that a model is measured on are left as people will give them to it: of the cleaning steps, none is done
    to them. Training rows that are in one of these splits too are taken out of training.

    Raises:
        `ValueError`: if a split is not there (validation alone may be missing), the splits have different formats, or
            no row is left.
    """
    keep = {args.group_column, (args.loss_args or {}).get("within")}

    def read(split: str, count: int | None, share: str = "0:1") -> Feedback:
        with in_split(split):
            found = read_feedback(data_args, split, count, share, feedback_args)
        return replace(found, rows=_of_format(found.rows, found.kind, keep))

    of_train = read(data_args.dataset_train_split, data_args.max_train_samples, args.train_share)
    train, kind = of_train.rows, of_train.kind
    seen = sorted(IMAGES & set(train.column_names))
    if seen:
        raise ValueError(
            f"The rows have pictures ({', '.join(seen)}), which this recipe would not look at. How a model that sees "
            "is trained on them is in docs/image_rewards.md; to learn from the texts alone, remove the columns."
        )
    of_validation = None
    if args.validation_split is not None:
        try:
            of_validation = read(args.validation_split, data_args.max_eval_samples)
        except NoSuchSplit as error:
            logger.warning("No validation rows, so scores will not be calibrated to ratings: %s", error)
    of_test = read(data_args.dataset_test_split, data_args.max_eval_samples)
    found = {"train": of_train} | ({} if of_validation is None else {"validation": of_validation}) | {"test": of_test}
    checks = {name: of_split.check for name, of_split in found.items()}
    if len({check.format.kind for check in checks.values()}) > 1:
        there = ", ".join(f"{name}: {check.format.kind}" for name, check in checks.items())
        raise ValueError(f"The splits have different formats ({there}). Bring them into one, or name feedback_format.")
    test, validation = of_test.rows, None if of_validation is None else of_validation.rows
    held_out = {"test": test} | ({} if validation is None else {"validation": validation})
    train, table = run(steps_from(cleaning_args, held_out=held_out), train)
    if args.balance_length is not None:
        train = balance_pairs(train, "length", how=cast(Any, args.balance_length), seed=args.seed)
    if args.group_column is not None and args.group_column not in train.column_names:
        raise ValueError(f"group_column is {args.group_column!r}; the columns are {', '.join(train.column_names)}.")
    return Splits(train, validation, test, kind, checks, table)


def check_conversations(
    splits: Splits,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    args: TemplateArguments,
    data: DataArguments,
    validation_split: str | None,
) -> None:
    """Raise `ValueError`, before a model is loaded, for a conversation that the chat template cannot render."""
    if tokenizer.chat_template is None:
        return
    names = (data.dataset_train_split, validation_split, data.dataset_test_split)
    for name, rows in zip(names, (splits.train, splits.validation, splits.test), strict=True):
        if rows is None:
            continue
        kwargs = [{**(args.chat_template_kwargs or {}), **own} for own in kwargs_of(rows)]
        if "completion" in rows.column_names:  # ratings, also where pairs will be drawn of them
            texts = Texts.of(rows, "completion")
            of_rows = [[item] for item in zip(texts.prompts, texts.completions, strict=True)]
        else:
            of_rows = objective.texts(rows)
        items = [(row, *item) for row, of_row in enumerate(of_rows) for item in of_row]
        check_items(items, tokenizer, kwargs, Origin(data, str(name)))


def _of_format(rows: Dataset, kind: Kind, keep: set[Any]) -> Dataset:
    """The rows without what belongs to other formats: else a column of another could be taken for this one's."""
    own = {*FORMATS[kind].columns, *FORMATS[kind].optional, *keep}
    foreign = [name for name in rows.column_names if name in (*SAID, *ANSWERS) and name not in own]
    if foreign:
        logger.info("Read as %s, so these columns do not count: %s.", kind, ", ".join(foreign))
    return rows.remove_columns(foreign)
