"""From rows of feedback to the token ids that a reward model is trained on.

Feedback of any format of `rlhf_recipes.data.feedback`, as text or messages. What a model reads here is what
`rlhf_recipes.rewards.learned.LearnedReward` shows it later: prompt and completion as one text, its beginning cut off
where it is too long.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import has_messages, kwargs_of
from rlhf_recipes.data.columns import detect_format
from rlhf_recipes.data.feedback.formats import Feedback, FeedbackArguments
from rlhf_recipes.data.feedback.read import read_rows
from rlhf_recipes.data.feedback.recognize import row_keys
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.data.pairs import draw_pairs
from rlhf_recipes.data.preprocessing import normalize_text
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import readable_tokens
from rlhf_recipes.modeling.reading import joined, judged_ids, judged_text
from rlhf_recipes.modeling.tokenizers.text_ends import adds_eos, ends_texts
from rlhf_recipes.reward_modeling.debias import covariates
from rlhf_recipes.reward_modeling.losses.base import Item, Objective
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.rewards.step_model import cut_beginning, encode_steps, own_mark
from rlhf_recipes.texts import as_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
PAIRS = ("chosen", "rejected")


def read_feedback(
    data_args: DataArguments,
    split: str,
    count: int | None = None,
    share: str = "0:1",
    feedback_args: FeedbackArguments | None = None,
) -> Feedback:
    """Load the rows of one split that say something, and of them those in a share.

    Args:
        data_args ([`~rlhf_recipes.data.loading.DataArguments`]), split (`str`): Which rows.
        count (`int`, *optional*): Take that many of them, drawn at random.
        share (`str`, *optional*, defaults to `"0:1"`): Which share of them, see [`in_share`].
        feedback_args ([`~rlhf_recipes.data.feedback.formats.FeedbackArguments`], *optional*):
            How they are read, weighed and converted.

    Raises:
        `ValueError`: if the format is not known, a row is wrong, or no row is left.
    """
    dataset = load_rows(data_args.dataset_name, split, data_args.dataset_config)
    found = read_rows(dataset, feedback_args or FeedbackArguments())
    dataset = found.rows
    low, high = parse_share(share)
    if (low, high) != (0.0, 1.0):
        kept = [row for row, key in enumerate(row_keys(dataset)) if in_share(key, low, high)]
        if not kept:
            raise ValueError(f"None of the {len(dataset)} rows of split {split!r} is in the share {share}. Widen it.")
        logger.info("Share %s: %d of %d rows of split %r.", share, len(kept), len(dataset), split)
        dataset = dataset.select(kept)
    return replace(found, rows=sample_rows(dataset, count))


def load_feedback(data_args: DataArguments, split: str, count: int | None = None, share: str = "0:1") -> Dataset:
    """The rows alone of [`read_feedback`]."""
    return read_feedback(data_args, split, count, share).rows


def parse_share(share: str) -> tuple[float, float]:
    """Read `"0:0.6"` as the bounds of a share; `ValueError` if it is not two numbers `0 <= low < high <= 1`."""
    low, _, high = share.partition(":")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = 0.0, -1.0
    if not 0 <= bounds[0] < bounds[1] <= 1:
        raise ValueError(f"train_share is {share!r}; give two numbers between 0 and 1, the lower first, as in 0:0.6.")
    return bounds


def in_share(text: str, low: float, high: float) -> bool:
    """Whether a text lies in one share of all texts, by nothing but a hash of it.

    The shares `[0, 0.6)` and `[0.6, 1)` have no text in common, however rows are ordered, and copies that differ in
    case or spaces are on the same side. So a judge can be trained on rows that a reward model never saw. The hash is
    not that of the split into train and test: a share of either is like all of it.
    """
    digest = hashlib.sha256(f"share:{normalize_text(text)}".encode("utf-8", "surrogatepass")).digest()
    return low <= int.from_bytes(digest[:6], "big") / 2**48 < high  # 48 bits: the quotient is exact and below 1


def settings_for(
    tokenizer: PreTrainedTokenizerBase,
    model: "PreTrainedModel",
    max_length: int | None,
    rows: Dataset | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> RewardModelSettings:
    """Settings that fit a model: an end-of-sequence token where the tokenizer sets none itself, and its limit.

    A decoder's head reads the last token, and an end-of-sequence token is the one that has seen the text end. An
    encoder's tokenizer closes each text itself, and so does a chat template.

    `rows` are the training rows, which may be conversations (default: plain text), `template_kwargs` what the chat
    template is told of each.
    """
    limits = [limit for limit in (max_length, readable_tokens(model)) if limit is not None]
    rendered = rows is not None and rendered_by_template(rows, tokenizer)
    append_eos = tokenizer.eos_token is not None and not rendered and not ends_texts(tokenizer)
    return RewardModelSettings(
        append_eos=append_eos, max_length=min(limits, default=None), chat_template_kwargs=template_kwargs
    )


def rendered_by_template(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the texts of rows are messages, of which the tokenizer's chat template makes text with its own ends."""
    return tokenizer.chat_template is not None and has_messages(rows)


def tokenize(
    texts: Texts, tokenizer: PreTrainedTokenizerBase, settings: RewardModelSettings, name: str = "texts"
) -> list[list[int]]:
    """Turn prompts and completions into token ids, exactly as `LearnedReward` will.

    Texts longer than `settings.max_length` lose their beginning and are counted in the log. (TRL's trainer would leave
    out such rows without a word.)

    Messages go through the chat template. Where there is none they are read as
    `rlhf_recipes.modeling.reading.dialogue_text` writes them, which is said once.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side = "left"
    adds_it = adds_eos(tokenizer)
    ids = []
    truncated, who = 0, f"The tokenizer {tokenizer.name_or_path!r}"
    kwargs = texts.template_kwargs or [{}] * len(texts.prompts)
    for prompt, completion, own in zip(texts.prompts, texts.completions, kwargs, strict=True):
        text = judged_text(prompt, completion, tokenizer, settings, adds_it, own, who)
        of_text, cut = judged_ids(*text, tokenizer, settings.max_length)
        truncated += cut
        ids.append(of_text)
    if truncated:
        logger.warning(
            "%d of %d %s are longer than %d tokens: their beginning is cut off. max_length sets the limit.",
            *(truncated, len(ids), name, settings.max_length),
        )
    return ids


def pair_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    passes: int = 1,
    min_gap: float = 0.5,
    seed: int = 0,
) -> Dataset:
    """Make the rows that TRL's `RewardTrainer` takes as they are.

    Of ratings pairs are drawn, as [`~rlhf_recipes.data.pairs.draw_pairs`] does with `passes`, `min_gap` and `seed`.

    Returns:
        [`~datasets.Dataset`]: columns `chosen_ids`, `rejected_ids`, `margin` if there is one, and `length`, the longer
        of both, by which batches are grouped.
    """
    rated = detect_format(dataset.column_names) == "ratings"
    if rated:
        texts = Texts.of(dataset, "completion")
        ids = tokenize(texts, tokenizer, settings)
        keys = [json.dumps(key) for key in zip(texts.prompts, texts.completions, strict=True)]
        pairs = draw_pairs(keys, dataset["score"], passes, min_gap, seed)
        chosen, rejected = [ids[row] for row in pairs[:, 0]], [ids[row] for row in pairs[:, 1]]
    else:
        chosen, rejected = (tokenize(Texts.of(dataset, side), tokenizer, settings, f"{side} texts") for side in PAIRS)
    columns: dict[str, Sequence[Any]] = {"chosen_ids": chosen, "rejected_ids": rejected}
    if not rated:
        differ = [row for row, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if a != b]
        if not differ:
            raise ValueError(
                f"In all {len(dataset)} pairs the chosen and the rejected text are the same to the model (perhaps "
                "because they differ before what max_length leaves), so there is nothing to learn."
            )
        if len(differ) < len(dataset):
            logger.warning("Left out %d pairs whose two texts are the same.", len(dataset) - len(differ))
        if "margin" in dataset.column_names:
            columns["margin"] = list(dataset["margin"])
        columns = {name: [values[row] for row in differ] for name, values in columns.items()}
    lengths = [max(len(a), len(b)) for a, b in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)]
    return Dataset.from_dict(columns | {"length": lengths})


def example_rows(
    dataset: Dataset,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    debias: Sequence[str] = (),
    groups: Sequence[Any] | None = None,
) -> Dataset:
    """Make the rows that `FeedbackTrainer` takes: the texts of each as token ids, and its targets.

    Args:
        dataset, objective: The feedback and the loss that reads it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), settings ([`RewardModelSettings`]): As in [`tokenize`].
        debias (`Sequence[str]`, *optional*): Covariates to compute of each completion.
        groups (`Sequence`, *optional*): The group of each row, `None` for none; numbered in the column `group`.

    Returns:
        [`~datasets.Dataset`]: columns `input_ids` (a list of texts), the targets, `covariates` if there are any, and
        `length`, that of the longest text, by which batches are grouped.
    """
    items, targets = objective.texts(dataset), objective.weighed_targets(dataset)
    if objective.step_token is not None:
        objective.step_token = own_mark(objective.step_token, tokenizer)
        mark = list(tokenizer(objective.step_token, add_special_tokens=False).input_ids)
        if not mark:
            raise ValueError(
                f"The tokenizer makes no token of the mark behind each step, step_token {objective.step_token!r}. "
                "Name one that it has in loss_args, such as {step_token: "
                f"{(tokenizer.sep_token or tokenizer.eos_token)!r}}}."
            )
        encoded = [
            _encode_solution(steps, mark, tokenizer, settings, own)
            for steps, own in zip(items, kwargs_of(dataset), strict=True)
        ]
        ids = [[of_text] for of_text, _ in encoded]
        targets["ends"] = [[float(place) for place in places] for _, places in encoded]
    else:
        flat = [item for of_row in items for item in of_row]
        kwargs = [own for of_row, own in zip(items, kwargs_of(dataset), strict=True) for _ in of_row]
        flat_ids = iter(tokenize(Texts([p for p, _ in flat], [c for _, c in flat], kwargs), tokenizer, settings))
        ids = [[next(flat_ids) for _ in of_row] for of_row in items]
    columns: dict[str, list[Any]] = {"input_ids": ids, **targets}
    if debias:
        answers = [[completion for _, completion in of_row] for of_row in items]
        columns["covariates"] = [covariates(of_row, debias).tolist() for of_row in answers]
    if groups is not None:
        numbers = {name: place for place, name in enumerate(dict.fromkeys(groups))} | {None: -1}
        columns["group"] = [float(numbers[name]) for name in groups]
    columns["length"] = [max(map(len, of_row)) for of_row in ids]
    return Dataset.from_dict(columns)


def _encode_solution(
    steps: Sequence[Item],
    mark: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    template_kwargs: Mapping[str, Any],
) -> tuple[list[int], list[int]]:
    options = {**(settings.chat_template_kwargs or {}), **template_kwargs}
    start, _, special = joined(steps[0][0], "", tokenizer, options)
    limit = settings.max_length
    ids, places = encode_steps(start, [as_text(step) for _, step in steps], special, mark, tokenizer)
    if limit is None or len(ids) <= limit:
        return ids, places
    return cut_beginning(ids, places, limit, tokenizer.bos_token_id)
