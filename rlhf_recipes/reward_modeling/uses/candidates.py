"""Several completions of each prompt, where they come from, what rewards say of them, and what is kept of them.

```
a policy          prompts -> N samples each, drawn with noise keyed by (seed, row, number of the sample)
a dataset column  [prompt,] completions (a list), perhaps with gold values: search results, samples from elsewhere
```
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import answered, kwargs_of
from rlhf_recipes.data.columns import is_blank, prompts_of, require_columns
from rlhf_recipes.data.prompts import check_prompts, tokenize_prompts, with_openings
from rlhf_recipes.modeling.decoders import check_ids
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.statistics import numbers
from rlhf_recipes.texts import Text, as_text, is_conversational

if TYPE_CHECKING:
    from rlhf_recipes.modeling.generation import Written
    from rlhf_recipes.rewards.workbench.table import Sample

logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidates:
    """The candidates of B prompts, B lists of them; every list beside them has the same shape."""

    prompts: list[Text]  # (B,)  texts or messages; "" for texts without a prompt
    completions: list[list[Text]]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)  # what else is said of each prompt, for rewards
    ids: list[list[list[int]]] | None = None  # token ids, the end-of-sequence token kept
    logprobs: list[list[float]] | None = None  # of each under the policy, in nats
    gold: list[list[float]] | None = None  # what people say of each

    @property
    def alone(self) -> int:
        """How many prompts have a single candidate, so that there is nothing to choose."""
        return sum(len(of_prompt) == 1 for of_prompt in self.completions)

    def __len__(self) -> int:
        return len(self.prompts)


def generate_candidates(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    count: int,
    max_prompt_length: int,
    max_completion_length: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
) -> Candidates:
    """`count` samples for each row of a dataset with a column `prompt`, from the policy's own distribution.

    Sample j of row i is drawn with noise that depends on `(seed, i, j)` alone: neither the batch size nor the number
    of candidates changes it, so the first 4 of 16 are the 4 that a run with 4 gives.

    Raises:
        `ValueError`: if `count` is below 1, or a prompt has no token or does not fit into the policy's context.
    """
    from rlhf_recipes.modeling.checks.shortcuts import may_keep_logits
    from rlhf_recipes.modeling.generation import LocalGenerator, sampling_config, stable_key, token_lists, write

    if count < 1:
        raise ValueError(f"The number of candidates is {count}; give 1 or more.")
    prompts = list(dataset["prompt"])
    prompt_ids = tokenize_prompts(prompts, tokenizer, max_prompt_length, kwargs_of(dataset))
    dataset = with_openings(dataset, prompt_ids, tokenizer)
    check_prompts(prompt_ids, policy, max_completion_length)
    check_ids(prompt_ids, policy, tokenizer, "prompts")
    config = sampling_config(tokenizer, policy, max_completion_length, temperature)
    generator = LocalGenerator(policy)
    order = [(row, sample) for row in range(len(prompts)) for sample in range(count)]
    ids: list[list[int]] = []
    logprobs: list[float] = []
    with tqdm(total=len(order), unit="completion", desc="Sampling") as bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            keys = [stable_key(seed, "candidates", *place) for place in part]
            written = write(generator, [prompt_ids[row] for row, _ in part], keys, config, policy.device, batch_size)
            ids += token_lists(written)
            if start == 0:
                keep = may_keep_logits(policy, _tokens(written), temperature)
            logprobs += _logprobs(policy, written, temperature, keep)
            bar.update(len(part))
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=True)
    asked, texts = answered([prompts[row] for row, _ in order], decoded)
    columns = {name: list(dataset[name]) for name in dataset.column_names if name != "prompt"}
    lists = (_in_lists(values, [count] * len(prompts)) for values in (texts, ids, logprobs))
    candidates, their_ids, their_logprobs = lists
    return Candidates(asked[::count], candidates, columns, their_ids, their_logprobs)


@torch.no_grad()
def _logprobs(policy: Any, written: "Written", temperature: float, keep: bool) -> list[float]:
    from rlhf_recipes.modeling.logprobs import completion_logprobs

    per_token = completion_logprobs(
        policy, **_tokens(written), temperature=temperature, keep=keep, trim=False
    ).logprobs
    return per_token.masked_fill(written.mask == 0, 0.0).double().sum(dim=1).tolist()


def _tokens(written: "Written") -> dict[str, Any]:
    return {name: getattr(written, name) for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask")}


def _in_lists(values: Iterable[Any], sizes: Sequence[int]) -> list[list[Any]]:
    left = iter(values)
    return [[next(left) for _ in range(size)] for size in sizes]


def given_candidates(
    dataset: Dataset,
    column: str = "completions",
    prompt_column: str = "prompt",
    gold_column: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Candidates:
    """The candidates that a dataset has, a list in each row.

    A column `logprobs`, as in what [`candidate_rows`] gives, says that they are samples of a policy, and how likely.

    Args:
        column (`str`, *optional*): Lists of texts, or of messages.
        prompt_column (`str`, *optional*): What they answer. Rows need none; of search results it is the query.
        gold_column (`str`, *optional*): Lists of numbers, one for each candidate: how good it is.
        tokenizer (*optional*): Makes token ids, for rewards that count tokens.

    Raises:
        `ValueError`: if a column is missing, a list is empty, a candidate is missing, or gold values do not match.
        `TypeError`: if a candidate is neither text nor messages.
    """
    wanted = [column, *([gold_column] if gold_column else [])]
    require_columns(dataset, wanted, "The choice among candidates")
    plain = dataset.with_format(None)
    completions = list(plain[column])
    for row, of_row in enumerate(completions):
        if not isinstance(of_row, list) or not of_row or is_conversational(of_row):
            raise ValueError(
                f"Row {row} has no list of candidates in column {column!r}, but {str(of_row)[:60]!r}. Each row needs "
                "a list of one text or more; leave rows without out."
            )
        if None in of_row:
            raise ValueError(f"Candidate {of_row.index(None)} of row {row} is missing. Leave it out of the list.")
    blank = sum(is_blank(text, column, row) for row, of_row in enumerate(completions) for text in of_row)
    if blank:
        logger.warning("%d candidates are empty or blank, as a policy may be; they are scored as they stand.", blank)
    prompts = prompts_of(plain, completions[0], prompt_column)
    gold = None if gold_column is None else _beside(list(plain[gold_column]), completions, gold_column)
    logprobs = _beside(list(plain["logprobs"]), completions, "logprobs") if "logprobs" in plain.column_names else None
    ids = None
    if tokenizer is not None:
        ids = [
            tokenizer([as_text(text) for text in of_row], add_special_tokens=False, verbose=False)["input_ids"]
            for of_row in completions
        ]
    names = [name for name in plain.column_names if name not in (*wanted, prompt_column, "logprobs")]
    columns = {name: list(plain[name]) for name in names}
    return Candidates(prompts, completions, columns, ids, logprobs, gold)


def _beside(values: Sequence[Any], completions: Sequence[Sequence[Text]], column: str) -> list[list[float]]:
    gold = []
    for row, (of_row, candidates) in enumerate(zip(values, completions, strict=True)):
        if not isinstance(of_row, list) or len(of_row) != len(candidates):
            count = len(of_row) if isinstance(of_row, list) else "no list of"
            raise ValueError(
                f"Row {row} has {len(candidates)} candidates and {count} values in column {column!r}; give one each."
            )
        gold.append(numbers(of_row, f"{column} values in row {row}").tolist())
    return gold


# --- scores ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """What one list of rewards says: the weighted sum, and each reward by name, in the shape of the candidates."""

    total: list[list[float]]
    parts: Mapping[str, list[list[float | None]]]


def score_candidates(rewards: WeightedSum, candidates: Candidates, chunk_size: int = 256) -> Scored:
    """The value of every candidate; those of one list are in one call, because some rewards compare them.

    A reward is given about `chunk_size` rows at a time.

    Raises:
        `RewardError`: if a reward fails, or applies to no candidate of a row; it names the row.
        `ValueError`: if a reward is per token and there are no token ids.
    """
    from rlhf_recipes.rewards.workbench.table import Sample

    if rewards.token_names and candidates.ids is None:
        raise ValueError(
            f"Reward {rewards.token_names[0]!r} gives a number for each token, but given candidates have none. Name a "
            "model whose tokenizer makes them (model_name_or_path), or leave the reward out."
        )
    owner = [row for row, of_prompt in enumerate(candidates.completions) for _ in of_prompt]
    sample = Sample(
        prompts=[candidates.prompts[row] for row in owner],
        completions=[text for of_prompt in candidates.completions for text in of_prompt],
        columns={name: [values[row] for row in owner] for name, values in candidates.columns.items()},
        rows=owner,
        completion_ids=None if candidates.ids is None else [ids for of_prompt in candidates.ids for ids in of_prompt],
    )
    sizes = [len(of_prompt) for of_prompt in candidates.completions]
    parts = score_in_chunks(rewards, sample, _in_lists(range(len(owner)), sizes), chunk_size)
    by_name = {name: _in_lists(values, sizes) for name, values in rewards.per_row(parts).items()}
    return Scored(_in_lists(rewards.totals(parts, progress=1.0), sizes), by_name)


def score_in_chunks(
    rewards: WeightedSum, sample: "Sample", groups: Sequence[Sequence[int]], chunk_size: int = 256
) -> dict[str, list[Any]]:
    """The values of each reward by name, in the order of the rows, from calls of about `chunk_size` rows.

    A group is never parted. Where a reward compares completions of a prompt (`wants_siblings`), two groups with the
    same prompt are not in one call either: lists that have no prompt at all must not be compared with one another.
    """
    from rlhf_recipes.rewards.workbench.table import Sample, score_rows

    apart = any(getattr(func, "wants_siblings", False) for func in rewards.reward_funcs)
    parts: dict[str, list[Any]] = {name: [None] * len(sample) for name in rewards.names}
    with tqdm(total=len(sample), unit="row", desc="Scoring") as bar:
        for rows in _chunks(sample, groups, chunk_size, apart):
            columns = {name: [values[row] for row in rows] for name, values in sample.columns.items()}
            chunk = Sample(
                [sample.prompts[row] for row in rows],
                [sample.completions[row] for row in rows],
                columns,
                [sample.rows[row] for row in rows],
                None if sample.completion_ids is None else [sample.completion_ids[row] for row in rows],
            )
            for name, values in score_rows(rewards, chunk, len(rows)).items():
                for row, value in zip(rows, values, strict=True):
                    parts[name][row] = value
            bar.update(len(rows))
    return parts


def _chunks(sample: "Sample", groups: Sequence[Sequence[int]], size: int, apart: bool) -> Iterator[list[int]]:
    chunk: list[int] = []
    prompts: set[str] = set()
    for group in groups:
        prompt = json.dumps(sample.prompts[group[0]])
        if chunk and (len(chunk) + len(group) > size or (apart and prompt in prompts)):
            yield chunk
            chunk, prompts = [], set()
        chunk = [*chunk, *group]
        prompts.add(prompt)
    if chunk:
        yield chunk


def judged(judges: WeightedSum | None, candidates: Candidates) -> dict[str, list[list[float]]]:
    """What does not choose and only watches, by name, for a curve: each judge by itself, and the gold values.

    Raises:
        `ValueError`: if a judge does not apply to every candidate, because what the choice is worth to it is then
            unknown; or if one is named like the gold values, or like the score.
    """
    parts = {} if judges is None else dict(score_candidates(judges, candidates).parts)
    taken = [name for name in ("score", "gold") if name in parts]
    if taken:
        raise ValueError(f"A judge is named {taken[0]!r}, which has another meaning here. Give it another name.")
    series: dict[str, list[list[float]]] = {}
    for name, of_all in parts.items():
        missing = [row for row, values in enumerate(of_all) if None in values]
        if missing:
            raise ValueError(
                f"The judge {name!r} says nothing of some candidates of {len(missing)} rows, row {missing[0]} the "
                "first. A judge must apply to every candidate."
            )
        series[name] = [[float(value) for value in values if value is not None] for values in of_all]
    return series if candidates.gold is None else series | {"gold": candidates.gold}


# --- what is kept ----------------------------------------------------------------------------------------


def best_rows(
    candidates: Candidates, scored: Scored, judges: Mapping[str, Sequence[Sequence[float]]]
) -> Iterator[Row]:
    """The choice of each prompt, and all that led to it.

    Of equal scores the first candidate is taken.

    Yields:
        `dict`: `prompt`, `completion` (the best), its `score`, `chosen` (its place in the list, from 0), `order` (the
        places of all from best to worst), `all_scores`, and `judges`, what each says of the best.
    """
    for row, scores in enumerate(scored.total):
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        yield {
            "prompt": candidates.prompts[row],
            "completion": candidates.completions[row][order[0]],
            "score": scores[order[0]],
            "chosen": order[0],
            "order": order,
            "all_scores": scores,
            "judges": {name: of_all[row][order[0]] for name, of_all in judges.items()},
        }


def candidate_rows(
    candidates: Candidates, scored: Scored, judges: Mapping[str, Sequence[Sequence[float]]]
) -> Iterator[Row]:
    """All candidates, to choose among them again with other rewards and without the policy."""
    for row, completions in enumerate(candidates.completions):
        made: Row = {"prompt": candidates.prompts[row], "completions": completions, "scores": scored.total[row]}
        if len(scored.parts) > 1:
            made["parts"] = {name: of_all[row] for name, of_all in scored.parts.items()}
        made["judges"] = {name: of_all[row] for name, of_all in judges.items()}
        if candidates.logprobs is not None:
            made["logprobs"] = candidates.logprobs[row]
        yield made


def pair_rows(candidates: Candidates, scored: Scored, min_gap: float = 0.0) -> tuple[list[Row], int]:
    """The best against the worst candidate of each prompt, as rows of preferences for DPO.

    The two scores differ by `min_gap` at least; equal scores never pair.

    Returns:
        `tuple[list[dict], int]`: rows of `prompt`, `chosen`, `rejected`, `chosen_score` and `rejected_score`, and how
        many prompts gave none, because their candidates are too close or the same text.

    Raises:
        `ValueError`: if `min_gap` is below 0.
    """
    if not min_gap >= 0:
        raise ValueError(f"min_gap is {min_gap}; give 0 or more.")
    rows: list[Row] = []
    for prompt, completions, scores in zip(candidates.prompts, candidates.completions, scored.total, strict=True):
        best, worst = (choose(range(len(scores)), key=scores.__getitem__) for choose in (max, min))
        gap = scores[best] - scores[worst]
        if gap > 0 and gap >= min_gap and json.dumps(completions[best]) != json.dumps(completions[worst]):
            sides = {"chosen": completions[best], "rejected": completions[worst]}
            rows.append({"prompt": prompt, **sides, "chosen_score": scores[best], "rejected_score": scores[worst]})
    left_out = len(candidates) - len(rows)
    if left_out:
        logger.info("%d of %d prompts give no pair: the candidates are alike.", left_out, len(candidates))
    return rows, left_out
