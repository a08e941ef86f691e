"""Every backbone in every way of training it: what is saved scores texts as the model in memory did.

The product of backbones, ways and feedback is `slow`; a part of it that holds each of them runs by default.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardTrainer

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import (
    ModelArguments,
    freeze_lower_layers,
    keep_gradients_of_4bit,
    load_reward_model,
    load_tokenizer,
)
from rlhf_recipes.reward_modeling.config import RewardConfig, fit_precision
from rlhf_recipes.reward_modeling.examples import example_rows, pair_rows, settings_for
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.saving import save_reward_model, save_settings
from rlhf_recipes.reward_modeling.trainer import FeedbackTrainer
from rlhf_recipes.rewards.learned import LearnedReward
from tests.architectures import EVERY
from tests.tiny import save_tiny, tiny_base, tiny_tokenizer

# MiniLM is a BERT, SmolLM2 a Llama, and Pythia a GPT-NeoX.
ENCODERS = ("bert", "modernbert", "distilbert", "roberta", "deberta-v2", "electra")
DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox")
KINDS = (*ENCODERS, *DECODERS)
MODES = ("full", "lora", "frozen", "qlora")
LOSSES = {"pairs": "bradley_terry", "ratings": "mse", "labels": "classification"}

TEXTS = [
    "The film is a quiet story.",
    "dull",
    "It was bad, but the music was good and the ending was great.",
    "What a wonderful little picture!",
]
ROWS = {
    "pairs": Dataset.from_dict(
        {
            "prompt": ["The film is", "What a", "It was", "Nobody"],
            "chosen": [" quiet and funny.", " wonderful little picture!", " great", " could save it but the music"],
            "rejected": [" dull.", " long evening for a tired cast of two brothers", " bad", " again"],
        }
    ),
    "ratings": Dataset.from_dict({"completion": TEXTS, "score": [0.5, -1.5, 1.0, 2.0]}),
    "labels": Dataset.from_dict({"completion": TEXTS, "score": [2.0, 1.0, 2.0, 3.0]}),
}

BF16_MASK = "its attention fills masks with the least number of float32, which autocast's bfloat16 does not have"


def why_it_fails(kind, mode, feedback):
    """What is known not to work, and why; `None` of all else."""
    if (kind, mode) == ("deberta-v2", "qlora"):
        return BF16_MASK
    return None


def combination(kind, mode, feedback):
    place = KINDS.index(kind) + MODES.index(mode)
    quick = tuple(ROWS)[place % 3] == feedback and (mode == "lora" or kind in ("bert", "llama"))
    marks = [] if quick else list(EVERY)
    if reason := why_it_fails(kind, mode, feedback):
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(kind, mode, feedback, marks=marks, id=f"{kind}-{mode}-{feedback}")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders with language models as they come from the Hub, made when first asked for."""
    folder = tmp_path_factory.mktemp("bases")

    def base(kind):
        if not (folder / kind).exists():
            tokenizer = tokenizer_of(kind)
            save_tiny(folder / kind, tiny_base(kind, tokenizer), tokenizer)
        return folder / kind

    return base


def tokenizer_of(kind):
    return tiny_tokenizer("bert" if kind in ENCODERS else "llama", model_max_length=126)


def encode(tokenizer, texts, append_eos=False):
    return [tokenizer(text + (tokenizer.eos_token if append_eos else "")).input_ids for text in texts]


def logits_of(model, ids, pad_id, left=False) -> Tensor:
    """What a model says of all texts in one batch. `(texts, outputs)`"""
    width = max(map(len, ids))

    def filled(row, value):
        padding = [value] * (width - len(row))
        return [*padding, *row] if left else [*row, *padding]

    input_ids = torch.tensor([filled(row, pad_id) for row in ids])
    mask = torch.tensor([filled([1] * len(row), 0) for row in ids])
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, attention_mask=mask).logits.float()


@dataclass
class Run:
    """A training that has ended: what was in memory, and where it was saved."""

    folder: Path
    model_args: ModelArguments
    settings: RewardModelSettings
    ids: list[list[int]]
    pad_id: int
    logits: Tensor  # of the model in memory, before it was saved
    new: list[str]  # names of the weights that were not in the base's files
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    quantization: Any

    def scores(self, logits: Tensor) -> list[float]:
        """The score that a person would work out: the only output, or the expected level of 1, 2, 3."""
        if logits.shape[1] == 1:
            return logits[:, 0].tolist()
        return (logits.softmax(dim=1) @ torch.tensor([1.0, 2.0, 3.0])).tolist()


def plain_weights(model) -> dict[str, Tensor]:
    """A copy of all weights under the names that they have without PEFT; of two copies that which is trained."""
    found = {}
    for name, weight in model.named_parameters():
        if ".original_module." in name or ".lora_" in name:
            continue
        name = (
            name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".base_layer", "")
        )
        found[name] = weight.detach().float().clone()
    return found


def train(base: Path, folder: Path, mode: str, feedback: str) -> Run:
    """Two steps of training by the parts of `recipes/reward.py`, and its way of saving."""
    adapted = mode in ("lora", "qlora")
    model_args = ModelArguments(model_name_or_path=str(base), use_peft=adapted, load_in_4bit=mode == "qlora")
    args = RewardConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=2, per_device_train_batch_size=2,
        learning_rate=1e-2, save_strategy="no", disable_tqdm=True, num_frozen_layers=int(mode == "frozen"),
    )  # fmt: skip
    args = fit_precision(args, model_args)
    tokenizer = load_tokenizer(str(base))
    objective = make_objective(LOSSES[feedback])
    objective.fit(ROWS[feedback])
    torch.manual_seed(0)
    model = load_reward_model(model_args, tokenizer, labels=objective.label_names)
    freeze_lower_layers(model, args.num_frozen_layers)
    settings = settings_for(tokenizer, model, args.max_length)
    common = {"model": model, "args": args, "processing_class": tokenizer}
    before = plain_weights(model)
    if feedback == "pairs":
        rows = pair_rows(ROWS[feedback], tokenizer, settings)
        trainer = RewardTrainer(train_dataset=rows, data_collator=PairCollator(tokenizer), **common)
    else:
        rows = example_rows(ROWS[feedback], objective, tokenizer, settings)
        trainer = FeedbackTrainer(objective=objective, train_dataset=rows, **common)
    trainer.train()

    ids = encode(tokenizer, TEXTS, settings.append_eos)
    logits = logits_of(trainer.model, ids, tokenizer.pad_token_id)
    after = plain_weights(trainer.model)
    quantization = getattr(trainer.model.config, "quantization_config", None)
    save_reward_model(trainer, model_args)
    save_settings(folder, settings, objective, plain=feedback == "pairs")
    _, said = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(objective.label_names), output_loading_info=True
    )
    new = sorted(said["missing_keys"])
    return Run(
        folder, model_args, settings, ids, tokenizer.pad_token_id, logits, new, before, after, quantization
    )  # fmt: skip


def check_head(run: Run) -> None:
    """All that was drawn at random has been trained, and is in the files as it was trained."""
    assert run.new
    merged = load_file(run.folder / "model.safetensors")
    for name in run.new:
        # A bias has no gradient under Bradley-Terry: it falls out of the difference of two scores.
        if name.endswith("weight"):
            assert not torch.equal(run.before[name], run.after[name]), f"{name} was not trained"
        assert torch.equal(merged[name].float(), run.after[name]), f"{name} was not saved"
    if run.model_args.use_peft:
        adapter = load_file(run.folder / "adapter/adapter_model.safetensors")
        for name in run.new:
            assert torch.equal(adapter[f"base_model.model.{name}"].float(), run.after[name])


def check_whole_model(run: Run, logits: Tensor, **tolerance: float) -> None:
    """The folder, through plain transformers with its own tokenizer, and as a reward."""
    model = AutoModelForSequenceClassification.from_pretrained(run.folder)
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    ids = encode(tokenizer, TEXTS)  # it ends them by itself
    assert ids == run.ids
    assert model.config.pad_token_id == tokenizer.pad_token_id == run.pad_id
    torch.testing.assert_close(logits_of(model, ids, run.pad_id), logits, **tolerance)
    scores = LearnedReward(run.folder, calibrate=False)([""] * len(TEXTS), TEXTS)
    assert scores == pytest.approx(run.scores(logits), rel=tolerance["rtol"], abs=tolerance["atol"])


def check_adapter(run: Run) -> None:
    """The adapter's folder, through plain PEFT, and as a reward."""
    adapter, outputs = run.folder / "adapter", run.logits.shape[1]
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=outputs)
    torch.testing.assert_close(logits_of(model, run.ids, run.pad_id), run.logits, rtol=0, atol=1e-5)
    scores = LearnedReward(adapter, calibrate=False)([""] * len(TEXTS), TEXTS)
    assert scores == pytest.approx(run.scores(run.logits), abs=1e-5)


def check_4_bit(run: Run) -> None:
    """The adapter on a base in 4 bit is what was trained; merged, it is the same adapter on the base's own weights."""
    adapter, outputs = run.folder / "adapter", run.logits.shape[1]
    base = run.model_args.model_name_or_path
    quantized = AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=outputs, quantization_config=run.quantization
    )
    keep_gradients_of_4bit(quantized)
    with torch.autocast("cpu", torch.bfloat16):  # as it was trained
        logits = logits_of(quantized, run.ids, run.pad_id)
    torch.testing.assert_close(logits, run.logits, rtol=0, atol=1e-5)
    logits = logits_of(quantized, run.ids, run.pad_id)
    scores = LearnedReward(adapter, calibrate=False, load_in_4bit=True)([""] * len(TEXTS), TEXTS)
    assert scores == pytest.approx(run.scores(logits), abs=1e-5)

    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
    logits = logits_of(PeftModel.from_pretrained(whole, adapter), run.ids, run.pad_id)
    assert (logits - run.logits).abs().max() > 1e-3  # 4 bit are not 32
    check_whole_model(run, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "mode", "feedback"), [combination(*each) for each in itertools.product(KINDS, MODES, ROWS)]
)
def test_what_is_saved_scores_as_the_model_in_memory_did(kind, mode, feedback, bases, tmp_path):
    if mode == "qlora":
        pytest.importorskip("bitsandbytes")
    run = train(bases(kind), tmp_path / "out", mode, feedback)
    check_head(run)
    if mode == "qlora":
        check_4_bit(run)
    elif mode == "lora":
        check_whole_model(run, run.logits, rtol=1e-4, atol=1e-5)
        check_adapter(run)
    else:
        check_whole_model(run, run.logits, rtol=0, atol=1e-5)


@pytest.fixture
def with_head(bases):
    """A reward model that nobody has trained, with a head wide enough to see differences in."""

    def model_of(kind):
        tokenizer = load_tokenizer(str(bases(kind)))
        torch.manual_seed(0)
        return load_reward_model(ModelArguments(model_name_or_path=str(bases(kind))), tokenizer).eval(), tokenizer

    return model_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_that_of_the_text_alone_whatever_it_is_batched_with(kind, with_head):
    model, tokenizer = with_head(kind)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    append_eos = kind in DECODERS
    alone = [logits_of(model, [ids], tokenizer.pad_token_id) for ids in encode(tokenizer, TEXTS, append_eos)]
    expected = torch.cat(alone)[:, 0].tolist()
    assert max(expected) - min(expected) > 0.05
    for padding_side, batch_size in (("left", 4), ("right", 4), ("right", 3), ("right", 1)):
        tokenizer.padding_side = padding_side
        settings = RewardModelSettings(append_eos=append_eos)
        reward = LearnedReward(model, tokenizer, batch_size=batch_size, settings=settings)
        assert reward([""] * len(TEXTS), TEXTS) == pytest.approx(expected, abs=1e-5)


UNFIT_FOR_LEFT = {
    **dict.fromkeys(ENCODERS, "its head reads the first token, which is then padding"),
    "gpt2": "it counts positions from the first token on, be it padding or not",
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=[pytest.mark.xfail(reason=UNFIT_FOR_LEFT[kind], strict=True)] if kind in UNFIT_FOR_LEFT else [],
        )
        for kind in KINDS
    ],
)
def test_padding_on_the_left_changes_nothing_in_plain_transformers(kind, with_head):
    model, tokenizer = with_head(kind)
    ids = encode(tokenizer, TEXTS, append_eos=kind in DECODERS)
    right, left = (logits_of(model, ids, tokenizer.pad_token_id, left=side) for side in (False, True))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_text_that_is_let_through_can_be_read(kind, with_head):
    model, tokenizer = with_head(kind)
    settings = settings_for(tokenizer, model, max_length=1024)
    assert 100 < settings.max_length <= 128
    reward = LearnedReward(model, tokenizer, settings=settings)
    assert torch.tensor(reward([""], [" The film is dull." * 100])).isfinite().all()
    assert reward.truncated == 1
