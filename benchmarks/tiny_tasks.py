"""What the benchmarks train on: tiny language models built in code, and tasks of a known best score.

Nothing is downloaded. A task says what is rewarded and on which prompts; a preset of recipes/configs says by which
method; `train` runs one on the other and gives back what was logged, the score on held-out prompts, and its cost.
"""

import io
import itertools
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.ppo import PPOConfig, PPOTrainer

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
METHODS = ("ppo", "actor_critic", "policy_gradient")
SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
SYMBOLS = tuple("abcdefghijklmnop")

# The same for every task and method. The reference of these tasks has random weights: nothing is worth staying near.
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "temperature": 1.0,
    "kl_coef": 0.0,
    "lr_scheduler_type": "constant",
}


def build_tokenizer(words: Sequence[str] = SYMBOLS) -> PreTrainedTokenizerFast:
    """One token for each word, words being parted by blanks, after four special tokens."""
    vocabulary = {word: number for number, word in enumerate([*SPECIALS.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **SPECIALS)


def build_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of one layer, 64 wide, with random weights: at first all tokens are nearly equally likely."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=1,
        n_head=4,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


@dataclass(frozen=True)
class Task:
    """What is rewarded, on which prompts.

    Args:
        best (`float`): The highest mean score that any policy can have, known from the reward.
        options (`dict`): Of `PPOConfig`, for every method.
        tuned (`dict`): Of `PPOConfig`, by method.
        watched (`tuple`): Rewards that are measured and logged, and weigh nothing.
        start (callable): From a tokenizer and a seed to the policy that training begins with.
    """

    name: str
    words: tuple[str, ...]
    train: Dataset
    held_out: Dataset
    reward: Any
    best: float
    options: dict[str, Any]
    tuned: dict[str, dict[str, Any]]
    watched: tuple[Any, ...] = ()
    start: Callable[[PreTrainedTokenizerFast, int], GPT2LMHeadModel] = build_policy


@dataclass
class Run:
    """What a training run gave."""

    history: list[dict[str, float]]  # one entry for each rollout, sampled before the updates on it
    held_out: dict[str, float]  # after the last update
    rows: list[dict[str, Any]] = field(repr=False)  # the held-out completions
    settings: dict[str, Any] = field(repr=False)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


class EmitToken:
    """Share of a completion's tokens that are the wanted one."""

    __name__ = "emit"

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        return [sum(token == self.token for token in ids) / len(ids) for ids in completion_ids]


def reverse(
    completion_ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], **kwargs: Any
) -> list[list[float]]:
    """For each token, whether it is the wanted one of its position; a third each, so that the whole is worth 1."""
    rows = zip(completion_ids, wanted, strict=True)
    return [[float(token == right) / len(target) for token, right in zip(ids, target, strict=True)]
            for ids, target in rows]  # fmt: skip


reverse.per_token = True  # type: ignore[attr-defined]


class StopEarly:
    """1 for an end at once, less by `1 / limit` for each token before it, 0 where there is none within `limit`."""

    __name__ = "stop"

    def __init__(self, end: int, limit: int) -> None:
        self.end, self.limit = end, limit

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        before = [len(ids) - 1 if ids[-1] == self.end else self.limit for ids in completion_ids]
        return [1.0 - count / self.limit for count in before]


def _prompts() -> tuple[list[str], list[str]]:
    """The 216 words of three letters from a to f, in a fixed random order: 152 to train on, and 64 held out."""
    words = [" ".join(letters) for letters in itertools.product("abcdef", repeat=3)]
    random.Random(0).shuffle(words)
    return words[:-64], words[-64:]


def _tuned(
    ppo: tuple[float, int],
    actor_critic: tuple[float, int],
    policy_gradient: tuple[float, int],
    **on_policy: float,
) -> dict[str, dict[str, Any]]:
    """For each method a learning rate and the episodes of a run. docs/learning.md says how they were chosen.

    Args:
        on_policy: further options of the two methods that make one update for each rollout.
    """
    # Scores between 0 and 1 have a variance of about 0.01, and so has the critic's squared error; the policy's loss is
    # made of advantages of variance 1. With vf_coef 0.1 the critic would be left behind.
    critic = {"vf_coef": 10.0}
    return {
        "ppo": {"learning_rate": ppo[0], "total_episodes": ppo[1], **critic},
        "actor_critic": {"learning_rate": actor_critic[0], "total_episodes": actor_critic[1], **critic, **on_policy},
        "policy_gradient": {"learning_rate": policy_gradient[0], "total_episodes": policy_gradient[1], **on_policy},
    }


def emit_task() -> Task:
    train, held_out = (Dataset.from_dict({"prompt": prompts}) for prompts in _prompts())
    return Task(
        name="emit",
        words=SYMBOLS,
        train=train,
        held_out=held_out,
        reward=EmitToken(build_tokenizer().convert_tokens_to_ids("a")),
        best=1.0,
        options={"max_completion_length": 8, "stop_token": "none"},
        tuned=_tuned(ppo=(3e-4, 1920), actor_critic=(1e-2, 1920), policy_gradient=(1e-2, 1920)),
    )


def reverse_task() -> Task:
    tokenizer = build_tokenizer()

    def rows(prompts: list[str]) -> Dataset:
        backwards = [" ".join(reversed(prompt.split())) for prompt in prompts]
        return Dataset.from_dict({"prompt": prompts, "wanted": tokenizer(backwards)["input_ids"]})

    train, held_out = map(rows, _prompts())
    return Task(
        name="reverse",
        words=SYMBOLS,
        train=train,
        held_out=held_out,
        reward=reverse,
        best=1.0,
        options={"max_completion_length": 3, "stop_token": "none"},
        # Without a bonus some seeds settle on a wrong symbol before they have seen the right one often enough.
        tuned=_tuned(ppo=(3e-4, 5120), actor_critic=(3e-3, 9600), policy_gradient=(3e-3, 9600), entropy_coef=0.05),
    )


def stop_task() -> Task:
    limit = 16
    train, held_out = (Dataset.from_dict({"prompt": prompts}) for prompts in _prompts())
    return Task(
        name="stop",
        words=SYMBOLS,
        train=train,
        held_out=held_out,
        reward=StopEarly(build_tokenizer().eos_token_id, limit),
        best=1.0,
        options={"max_completion_length": limit},
        tuned=_tuned(ppo=(3e-4, 1280), actor_critic=(1e-2, 1280), policy_gradient=(1e-2, 1280)),
    )


TASKS: dict[str, Callable[[], Task]] = {"emit": emit_task, "reverse": reverse_task, "stop": stop_task}


def settings_of(task: Task, method: str, seed: int, folder: str, **changes: Any) -> PPOConfig:
    """The preset of a method, and over it what the task asks for, as `--config preset.yaml --OPTION VALUE` does."""
    options = COMMON | task.options | task.tuned[method] | changes
    options |= {"output_dir": folder, "seed": seed, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    options |= {"num_sample_generations": 0, "num_completions_to_print": 0}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    parser = RecipeParser((PPOConfig,))
    (args,) = parser.parse(["--config", str(CONFIGS / f"preset_{method}.yaml"), *words])
    return args


def train(task: Task, method: str, seed: int, folder: str | None = None, **changes: Any) -> Run:
    """Train a fresh policy, and score one completion for each held-out prompt.

    Args:
        folder (`str`, *optional*): Where the policy is saved. Default: nowhere.
        changes: options of `PPOConfig` other than those of the task.
    """
    tokenizer = build_tokenizer(task.words)
    policy = task.start(tokenizer, seed)
    with tempfile.TemporaryDirectory() as its_own:
        args = settings_of(task, method, seed, folder or its_own, **changes)
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy,
            reward_funcs=[task.reward, *task.watched],
            reward_weights=[1.0] + [0.0] * len(task.watched),
            train_dataset=task.train,
            eval_dataset=task.held_out,
        )
        wall, cpu = time.perf_counter(), cpu_seconds()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        held_out = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
        rows = trainer.generate_completions()
        if folder:
            trainer.save_model()
    history = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    chosen = sorted({*COMMON, *task.options, *task.tuned[method], *changes})
    settings = {name: getattr(args, name) for name in chosen}
    return Run(history, held_out, rows, settings, wall_seconds=wall, cpu_seconds=cpu)


def episodes_to(history: Sequence[Mapping[str, float]], score: float) -> int | None:
    """Episodes that had been learned from when a rollout first scored at least `score`; `None` if none did.

    A rollout is sampled before the updates on it, so its own episodes do not count.
    """
    learned = 0
    for entry in history:
        if entry["objective/scores"] >= score:
            return learned
        learned = int(entry["episode"])
    return None


def cpu_seconds() -> float:
    """Seconds of computing by this process, all threads together: other programs on the machine do not add to it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu_cores": os.cpu_count()}


def save_figure(file: Path, panels: Sequence[tuple[Callable[[Any, str], None], str]], columns: int) -> None:
    """Draw panels into a PNG, so many in a row; each is a function of its axes and its name."""
    from matplotlib.figure import Figure  # a second to import, and only for a plot
    from PIL import Image  # matplotlib brings it

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained", dpi=90)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (paint, name) in zip(grid, panels, strict=True):
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)  # a quarter of the size
