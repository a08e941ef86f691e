"""TRL 1.12's PPOTrainer at work, as it is; to be imported where the folder of that TRL comes first on the path."""

import contextlib
import time
import types
from collections.abc import Iterator
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import get_peft_model
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from beside_trl import common
from beside_trl.setups import Setup


class Lexicon(torch.nn.Module):
    """A lexicon in the shape of a reward model: TRL takes nothing else."""

    base_model_prefix = "reader"

    def __init__(self, tokenizer: Any, prompt_tokens: int) -> None:
        super().__init__()
        self.tokenizer, self.prompt_tokens = tokenizer, prompt_tokens

    def reader(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return types.SimpleNamespace(hidden_states=[input_ids])

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        """The same score at every position `(B, L, 1)`."""
        texts = self.tokenizer.batch_decode(ids[:, self.prompt_tokens :], skip_special_tokens=True)
        return torch.tensor(common.praise(texts))[:, None, None].expand(*ids.shape, 1)


def run(setup: Setup, model: str, dataset: str, folder: str) -> dict[str, Any]:
    """One run, and what it took; the critic is a model of its own, since TRL has no other."""
    assert trl.__version__ == "1.12.0", f"{trl.__file__} is TRL {trl.__version__}"
    tokenizer, policy = common.load_tokenizer(model), common.load_policy(model)
    layers = policy.config.num_hidden_layers
    prompts = common.prompts_of(setup, tokenizer, dataset)
    value = common.load_classifier(model, tokenizer, seed=1)
    lexicon = setup.reward == "lexicon"
    reward = Lexicon(tokenizer, len(prompts[0])) if lexicon else common.load_classifier(model, tokenizer)
    of_critic = common.lora(setup, layers, "SEQ_CLS") if setup.critic_adapters else None
    marks = common.Marks(1)
    with _timed(marks, reward):
        trainer = PPOTrainer(
            PPOConfig(**common.ppo_options(setup, folder) | setup.options),
            tokenizer,
            policy,
            None,
            reward,
            Dataset.from_dict({"input_ids": prompts}),
            value if of_critic is None else get_peft_model(value, of_critic),
            peft_config=common.lora(setup, layers),
            callbacks=[marks],
        )
        loaded = common.memory_mb("VmRSS")
        trainer.train()
    history = common.curve(trainer.state.log_history)
    return marks.figures(setup) | {"loaded_mb": loaded, "prompt_tokens": len(prompts[0]), "curve": history}


@contextlib.contextmanager
def _timed(marks: common.Marks, reward: Any) -> Iterator[None]:
    """Let the clock see where TRL reads critic and reward model, which is the last that it does in a rollout."""
    plain = ppo_trainer.get_reward

    def timed(model: Any, *args: Any) -> Any:
        start = time.perf_counter()
        found = plain(model, *args)
        if model is reward:
            marks.scored(time.perf_counter() - start)
        marks.rollout_ends()
        return found

    ppo_trainer.get_reward = timed
    try:
        yield
    finally:
        ppo_trainer.get_reward = plain
