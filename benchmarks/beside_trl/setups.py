"""What is run: setups that both sides get alike, the bars to reach, and what each of our levers is without it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

REWARDS = ("model", "adapter", "lexicon")


@dataclass(frozen=True)
class Setup:
    """One piece of work, the same for every trainer.

    Args:
        batch: episodes of a rollout.
        micro: episodes of one forward and backward pass; `None` for all of a rollout at once.
        new_tokens: of each completion, exactly.
        prompt_tokens: of each prompt, exactly; `None` for five words of the dataset, which all have as many tokens.
        epochs: passes over a rollout, of one optimizer step each.
        lora_layers: how many layers, counted from the top, have adapters; `None` for training all weights.
        critic_adapters: whether TRL's critic has adapters on the same layers, put on by hand. TRL itself has none for
            it, so that its critic, a model of its own, is otherwise trained whole.
        checkpointing: whether activations are computed again in the backward pass.
        rollouts, warmup: rollouts that are measured, and those before them that are not.
        seed: of everything that is drawn.
        reward: `"model"`, a reward model of its own; `"adapter"`, ours then being an adapter on the policy's base, and
            TRL's a model of its own, since it has nothing else; `"lexicon"`, VADER's score of the completion.
        ours: settings of our PPOConfig, which other sides have nothing for.
        options: settings of the side that runs, over what the setup says; of its own config class.
    """

    batch: int = 16
    micro: int | None = None
    new_tokens: int = 20
    prompt_tokens: int | None = None
    epochs: int = 2
    lora_layers: int | None = 10
    critic_adapters: bool = False
    checkpointing: bool = False
    rollouts: int = 2
    warmup: int = 1
    seed: int = 0
    reward: str = "model"
    ours: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward is {self.reward!r}; it can be {', '.join(REWARDS)}.")
        if self.batch % (self.micro or self.batch):
            raise ValueError(f"A batch of {self.batch} episodes does not divide into micro-batches of {self.micro}.")

    @property
    def micro_batch(self) -> int:
        return self.micro or self.batch

    @property
    def episodes(self) -> int:
        """Of all rollouts together."""
        return self.batch * (self.rollouts + self.warmup)

    @property
    def prompts(self) -> int:
        """One rollout more than are taken: on the last batch of its data TRL takes a step for each micro-batch."""
        return self.episodes + self.batch

    @property
    def steps(self) -> int:
        """Optimizer steps for each rollout."""
        return self.epochs * int(self.options.get("num_mini_batches", 1))

    def as_json(self) -> str:
        return json.dumps(asdict(self))


SETUPS = {
    "lora10": Setup(),
    "lora10_half": Setup(ours={"rollout_dtype": "bfloat16"}),
    "lora10_adapter": Setup(reward="adapter"),
    "lora_all": Setup(lora_layers=30),
    "full": Setup(lora_layers=None),
    "tokens64": Setup(batch=8, new_tokens=64, epochs=4),
    "tokens200": Setup(batch=8, new_tokens=200),
    "prompt256": Setup(batch=8, prompt_tokens=256),
}

# How many times TRL's episodes a second, and at most which part of its peak memory, by the setup.
BARS = {
    "lora10": {"speed": 3.0, "memory": 0.4},
    "lora10_half": {"speed": 3.5, "memory": 0.4},
    "lora10_adapter": {"speed": 3.0, "memory": 1 / 3},
    "lora_all": {"speed": 1.6, "memory": 0.5},
    "full": {"speed": 1.8, "memory": 0.6},
    "tokens64": {"speed": 2.5},
    "tokens200": {"speed": 2.0},
}

# What makes this project's PPO cheap, and the options of PPOConfig with which that one thing is not there.
# MODEL stands for the policy's folder.
MODEL = "{model}"
LEVERS: dict[str, dict[str, Any]] = {
    "critic on the policy's body": {"critic": "policy"},
    "reference is the policy without adapters": {"ref_model_name_or_path": MODEL},
    "logits in chunks": {"logits_chunk_size": 10**9},
    "frozen layers once": {"reuse_trunk": False},
    "what they say kept for the update": {"trunk_memory_gb": 0.0},
    "weights laid out for decoding": {"packed_decoding": "none"},
}

# Along which quantity cost grows, and where it is measured; all else is as in `lora10`.
GROWTH: dict[str, list[Any]] = {
    "batch": [4, 8, 16, 32],
    "new_tokens": [10, 20, 40, 80, 160],
    "prompt_tokens": [16, 64, 256],
    "lora_layers": [5, 10, 20, 30],
    "epochs": [1, 2, 4, 8],
}
# With one role more each time; the reference is always there.
ROLES: dict[str, dict[str, Any]] = {
    "policy": {"reward": "lexicon", "ours": {"critic": "none"}},
    "+ critic": {"reward": "lexicon"},
    "+ reward": {},
}

# Fast enough to learn something in minutes: adapters, a lexicon as reward, small mini-batches, a high learning rate.
LEARNING = Setup(
    batch=32, new_tokens=16, epochs=2, rollouts=12, warmup=0, critic_adapters=True, reward="lexicon",
    options={"num_mini_batches": 4, "learning_rate": 1e-3},
)  # fmt: skip
