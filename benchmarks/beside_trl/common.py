"""What all sides share: the models and prompts, and the clocks.

Nothing here imports a trainer: TRL 1.12 is measured in a process that never sees this project's library.
"""

import collections
import itertools
import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from beside_trl.setups import Setup

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = 5
RANK = 16


def load_tokenizer(model: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    return tokenizer


def load_policy(model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def load_classifier(model: str, tokenizer: Any, seed: int = 0) -> Any:
    """The language model with a scalar head of random weights, the same in every process."""
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    return classifier


def praise(texts: Sequence[str]) -> list[float]:
    """VADER's score of each text, as `rlhf_recipes.rewards.Vader` gives it: a blank text is the worst."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] if text.strip() else -1.0 for text in texts]


def lora(setup: Setup, layers: int, task: str = "CAUSAL_LM") -> LoraConfig | None:
    """Adapters on all linear layers of the upper part; `None` where all weights are trained."""
    if setup.lora_layers is None:
        return None
    upper = list(range(layers - setup.lora_layers, layers)) if setup.lora_layers < layers else None
    head = {"modules_to_save": ["score"]} if task == "SEQ_CLS" else {}
    return LoraConfig(
        task_type=task, r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=LINEAR,
        layers_to_transform=upper, **head,
    )  # fmt: skip


def prompts_of(setup: Setup, tokenizer: Any, dataset: str) -> list[list[int]]:
    """As many prompts as the setup says, or as there are, no two alike and all of one length.

    Raises:
        `ValueError`: if the dataset does not have enough for one rollout.
    """
    lines = (Path(dataset) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["completion"] for line in lines]
    if setup.prompt_tokens is None:
        openings = {" ".join(text.split()[:WORDS]): None for text in texts if len(text.split()) > WORDS}
        ids = tokenizer(list(openings))["input_ids"]
        (length, _), *_ = collections.Counter(map(len, ids)).most_common(1)
        rows = [row for row in ids if len(row) == length]
    else:
        stream = itertools.cycle(token for text in texts for token in tokenizer(text + "\n")["input_ids"])
        rows = [list(itertools.islice(stream, setup.prompt_tokens)) for _ in range(setup.prompts)]
    if len(rows) < setup.batch:
        raise ValueError(f"{dataset} has {len(rows)} prompts of one length; a rollout takes {setup.batch}.")
    return rows[: setup.prompts]


def shared_options(setup: Setup, folder: str) -> dict[str, Any]:
    """Settings that have one name and one meaning in every trainer's config."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": setup.micro_batch,
        "gradient_accumulation_steps": setup.batch // setup.micro_batch,
        "gradient_checkpointing": setup.checkpointing,
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": setup.seed,
    }


def ppo_options(setup: Setup, folder: str) -> dict[str, Any]:
    """The same for the two PPO trainers, under the names of TRL 1.12."""
    return shared_options(setup, folder) | {
        "total_episodes": setup.episodes,
        "num_ppo_epochs": setup.epochs,
        "num_mini_batches": 1,
        "num_sample_generations": 0,
        "response_length": setup.new_tokens,
        "kl_coef": 0.05,
    }


def now() -> tuple[float, float]:
    """Seconds by the clock, and of computing by this process, all threads together."""
    return time.perf_counter(), time.process_time()


class Marks(TrainerCallback):
    """Notes both clocks at the end of every rollout, its updates included.

    `rollout_ends` is to be told when completions are written, read and scored, and `scored` what the reward took.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps  # of the optimizer, as the trainer counts them, for each rollout
        self.rows: list[dict[str, float]] = []
        self.before = self.between = now()
        self.score = 0.0

    def rollout_ends(self) -> None:
        self.between = now()

    def scored(self, seconds: float) -> None:
        self.score += seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps:
            return
        end = now()
        row = {"seconds": end[0] - self.before[0], "cpu_seconds": end[1] - self.before[1]}
        if self.between > self.before:
            row["score_seconds"] = self.score
            row["sample_seconds"] = self.between[0] - self.before[0] - self.score
            row["update_seconds"] = end[0] - self.between[0]
            row["rollout_cpu_seconds"] = self.between[1] - self.before[1]
            row["update_cpu_seconds"] = end[1] - self.between[1]
        self.rows.append(row)
        self.before, self.score = end, 0.0

    def figures(self, setup: Setup) -> dict[str, Any]:
        """Seconds for one episode, of the rollouts that count."""
        assert len(self.rows) == setup.warmup + setup.rollouts, (len(self.rows), setup)
        counted = self.rows[setup.warmup :]
        episodes = setup.batch * len(counted)
        return {name: sum(row[name] for row in counted) / episodes for name in counted[0]}


def memory_mb(which: str) -> float:
    """Resident memory of this process in MB, `"VmHWM"` the most so far and `"VmRSS"` what it is now.

    `getrusage` says the most that the process had before it became this program, too: the parent's, if that is more.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def curve(history: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """`[episodes learned from, mean score, KL in nats]` of every rollout, which is written before its own updates."""
    rollouts = [entry for entry in history if "objective/scores" in entry]
    learned = [0, *(int(entry["episode"]) for entry in rollouts)]
    figures = [[round(float(entry[name]), 5) for name in ("objective/scores", "objective/kl")] for entry in rollouts]
    return [[count, *of_rollout] for count, of_rollout in zip(learned, figures, strict=False)]
