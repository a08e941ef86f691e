"""The data of a compression, for language models: what structures are measured on, healed on and held against.

That of reward models is `rlhf_recipes.reward_modeling.uses.material`, which has the same parts.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import AutoConfig

from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.importance import read, real_tokens
from rlhf_recipes.compression.quality import Quality, accuracy, likelihood, preference, rewarded, token_accuracy
from rlhf_recipes.data.collators import padded
from rlhf_recipes.data.columns import drop_blank, require_columns
from rlhf_recipes.data.corruption import row_rng, swap_neighbours
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.modeling.generation import LocalGenerator, sampling_config, stable_key, token_lists, write
from rlhf_recipes.modeling.generation.written import pad_left
from rlhf_recipes.modeling.loading import (
    ModelArguments,
    check_model_path,
    is_adapter,
    load_policy,
    load_policy_tokenizer,
    load_reward_model,
    load_tokenizer,
)
from rlhf_recipes.rewards import load_rewards

logger = logging.getLogger(__name__)
FORMATS = [("text",), ("prompt", "completion"), ("messages",), ("completion",)]
OPENING = 6  # words of a text that a sample begins with
SWAPS = 0.3  # of neighbouring words, in a text that is held against the right one


class Material(Protocol):
    """What a compression needs of data."""

    kind: str  # language, pairs or labels
    tokenizer: Any
    train: Dataset
    calibration: list[dict[str, Any]]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows of `train` as a batch."""

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """`(2,)`: of how much the own loss is a mean, and the distance."""

    def loss(self, said: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The own loss of logits, as a sum."""

    def measure(self, model: Any) -> dict[str, Any]:
        """On the test rows: the arguments of [`~rlhf_recipes.compression.measured.Measured`]."""

    def samples(self, model: Any) -> list[dict[str, Any]]:
        """What a model says of a few test rows: `prompt`, `completion`, and `scores`."""

    def save(self, folder: Path) -> None:
        """Write what belongs beside a model: the tokenizer, and settings."""


def load_original(args: ModelArguments) -> tuple[Any, Any, bool]:
    """The model that is to be cut, its tokenizer, and whether it is a sequence classifier; on the best device.

    Raises:
        `ValueError`: for adapters that are not merged, quantized weights, a classifier with several outputs, and as
            [`~rlhf_recipes.compression.families.parts_of`].
    """
    name = check_model_path(args.model_name_or_path or "")
    if is_adapter(name):
        raise ValueError(
            f"{name!r} holds adapters and not a whole model: merge them first (recipes/ppo.py --save_merged true, or "
            "merge_and_unload and save_pretrained), and name that folder."
        )
    config = AutoConfig.from_pretrained(name, revision=args.model_revision)
    if args.load_in_4bit or args.load_in_8bit or getattr(config, "quantization_config", None):
        raise ValueError(
            "The weights would be quantized, and what stands for several weights cannot be cut. Load the model "
            "without load_in_4bit and load_in_8bit; with --bits 16 4 the structure says which layers are quantized "
            "afterwards."
        )
    is_reward = any("ForSequenceClassification" in kind for kind in config.architectures or ())
    if is_reward and config.num_labels != 1:
        raise ValueError(f"{name!r} has {config.num_labels} outputs; a classifier with one can be compressed here.")
    if is_reward:
        tokenizer = load_tokenizer(name)
        model: Any = load_reward_model(args, tokenizer, is_trainable=False)
    else:
        tokenizer = load_policy_tokenizer(args)
        model = load_policy(args, is_trainable=False, tokenizer=tokenizer)
    parts_of(model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval(), tokenizer, is_reward


def quality_of(material: Material, args: CompressConfig) -> Quality:
    """The quality that the settings ask for; `ValueError` where the data has no such."""
    if args.quality == "reward":
        if material.kind != "language":
            raise ValueError("quality reward is for models that write. A reward model has likelihood or accuracy.")
        reward = load_rewards(args.reward_funcs or [], args.reward_weights)

        def completions(model: Any, batch: Mapping[str, Any]) -> list[list[int]]:
            config = sampling_config(material.tokenizer, model, args.max_completion_length, 1.0)
            keys = [stable_key("compress", args.seed, str(prompt)) for prompt in batch["prompts"]]
            ids = [
                row[mask.bool()].tolist()
                for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            written = write(LocalGenerator(model), ids, keys, config, model.device, len(ids))
            return token_lists(written)

        return rewarded(reward, completions, material.tokenizer)
    likely = args.quality == "likelihood"
    if material.kind == "language":
        return likelihood() if likely else token_accuracy()
    if material.kind == "pairs":
        return preference(likelihood=likely)
    return accuracy(likelihood=likely)


class LanguageMaterial:
    """Texts for a causal language model, each closed by the end-of-sequence token where that fits in.

    Args:
        data ([`~rlhf_recipes.data.loading.DataArguments`]): Rows with `text`, `prompt` and `completion`,
            `messages`, or `completion`.
        args ([`~rlhf_recipes.compression.config.CompressConfig`]): The settings.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        device (`torch.device`): Of the calibration data.

    Raises:
        `ValueError`: if there are fewer than two texts of two tokens or more.
    """

    kind = "language"

    def __init__(self, data: DataArguments, args: CompressConfig, tokenizer: Any, device: torch.device) -> None:
        self.args = args
        self.tokenizer = tokenizer
        self.device = device
        train, test = (self._texts(data, *of) for of in (
            (data.dataset_train_split, data.max_train_samples), (data.dataset_test_split, data.max_eval_samples)
        ))  # fmt: skip
        self.test = test
        rows = [(text, ids) for text, ids in zip(train, map(self._ids, train), strict=True) if len(ids) > 1]
        check_rows(len(rows), "training texts of two tokens or more")
        self.train = Dataset.from_dict(
            {"input_ids": [ids for _, ids in rows], "length": [len(ids) for _, ids in rows]}
        )
        chosen = random.Random(args.seed).sample(rows, min(args.calibration_rows, len(rows)))
        if args.quality == "reward":
            self.calibration = self._prompts([text for text, _ in chosen])
        else:
            self.calibration = [self._batch(part) for part in self._parts([ids for _, ids in chosen])]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        tokens = real_tokens(batch)[:, 1:].sum().float()
        return torch.stack([tokens, tokens])

    def loss(self, said: Tensor, batch: Mapping[str, Any]) -> Tensor:
        real = real_tokens(batch)[:, 1:]
        return functional.cross_entropy(said[:, :-1][real].float(), batch["input_ids"][:, 1:][real], reduction="sum")

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, Any]:
        """Perplexity, the share of tokens that the model holds for the most probable, and of how many texts the
        likelihood falls when some neighbouring words change places."""
        swapped = [" ".join(swap_neighbours(text.split(), row_rng(0, text), SWAPS)) for text in self.test]
        right = self._read(model, self.test, "Measuring")
        wrong = self._read(model, swapped, "Measuring")
        differ = [place for place, text in enumerate(self.test) if text.split() != swapped[place].split()]
        ordered = [float(right[place][0] < wrong[place][0]) for place in differ]
        tokens = [float(count) for *_, count in right]
        columns = {
            "perplexity": ([nll for nll, *_ in right], tokens),
            "token_accuracy": ([float(hits) for _, hits, _ in right], tokens),
        }
        if ordered:
            columns["order_accuracy"] = (ordered, [1.0] * len(ordered))
        return {"columns": columns, "exponentials": ["perplexity"], "shares": [*columns][1:], "units": None}

    def samples(self, model: Any) -> list[dict[str, Any]]:
        texts = [text for text in self.test if len(text.split()) > OPENING][: self.args.samples] or self.test[:1]
        openings = [" ".join(text.split()[:OPENING]) for text in texts]
        rows = []
        for opening in openings:
            ids = torch.tensor([self._ids(opening, end=False)], device=model.device)
            written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                     max_new_tokens=24, pad_token_id=self.tokenizer.pad_token_id)  # fmt: skip
            text = self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
            rows.append({"prompt": opening, "completion": text})
        return rows

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def _texts(self, data: DataArguments, split: str, count: int | None) -> list[str]:
        rows = load_rows(data.dataset_name, split, data.dataset_config)
        columns = require_columns(rows, FORMATS, "Compression of a language model")
        rows, _ = drop_blank(rows, columns[-1:], data.dataset_name)
        rows = sample_rows(rows, count)
        if columns == ("messages",) or list(columns) == ["messages"]:
            return [self.tokenizer.apply_chat_template(row, tokenize=False) for row in rows["messages"]]
        return ["".join(map(str, parts)) for parts in zip(*(rows[name] for name in columns), strict=True)]

    def _ids(self, text: str, end: bool = True) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.args.max_length)["input_ids"]
        closes = end and len(ids) < self.args.max_length and self.tokenizer.eos_token_id is not None
        return [*ids, self.tokenizer.eos_token_id] if closes and ids[-1:] != [self.tokenizer.eos_token_id] else ids

    def _parts(self, rows: list[Any]) -> list[list[Any]]:
        size = self.args.per_device_eval_batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _batch(self, ids: list[list[int]]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in padded(ids, self.tokenizer.pad_token_id).items()}

    def _prompts(self, texts: list[str]) -> list[dict[str, Any]]:
        batches = []
        for part in self._parts([" ".join(text.split()[:OPENING]) for text in texts]):
            ids = [self._ids(text, end=False) for text in part]
            tensors = pad_left(ids, self.tokenizer.pad_token_id, max(map(len, ids)))
            batches.append({"input_ids": tensors[0].to(self.device), "attention_mask": tensors[1].to(self.device),
                            "prompts": part})  # fmt: skip
        return batches

    def _read(self, model: Any, texts: list[str], what: str) -> list[tuple[float, int, int]]:
        """Of each text: negative log-likelihood, tokens foretold, and of how many."""
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        found: dict[int, tuple[float, int, int]] = {}
        for part in tqdm(self._parts(order), desc=what, unit="batch", leave=False, disable=self.args.disable_tqdm):
            batch = self._batch([ids[place] for place in part])
            logits = read(model, batch).logits[:, :-1].float()
            words, real = batch["input_ids"][:, 1:], real_tokens(batch)[:, 1:]
            nll = functional.cross_entropy(logits.transpose(1, 2), words, reduction="none") * real
            hits = (logits.argmax(dim=-1) == words) & real
            of_rows = zip(
                nll.double().sum(dim=1).tolist(), hits.sum(dim=1).tolist(), real.sum(dim=1).tolist(), strict=True
            )
            found |= dict(zip(part, of_rows, strict=True))
        return [found[place] for place in range(len(ids))]


def check_rows(count: int, what: str) -> None:
    """Raise `ValueError` where there is too little to measure structures on."""
    if count < 2:
        raise ValueError(
            f"There are {count} {what}, and what a structure is worth cannot hang on a single row: give 2 or more, "
            "and better 32 or more."
        )
