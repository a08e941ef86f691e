"""What a user may hand to `PPOTrainer`, made into what it works with: names into models, models into rewards."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf_recipes.modeling.critics import build_critic
from rlhf_recipes.modeling.decoders import check_decoder, check_decoder_name, check_same_vocabulary
from rlhf_recipes.modeling.loading import (
    ModelArguments,
    check_model_path,
    disable_dropout,
    ensure_pad_token,
    is_adapter,
    keep_gradients_of_4bit,
    load_policy,
    load_policy_tokenizer,
)
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.tokenizers.padding import ends_of, fit_model
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.run.shared_tokenizer import SharedTokenizerReward
from rlhf_recipes.ppo.run.tables import FIGURES, TEXTS
from rlhf_recipes.rewards import LearnedReward, WeightedSum, load_rewards
from rlhf_recipes.rewards.contract.checks import check_can_stand

logger = logging.getLogger(__name__)

LOADERS = {
    "model": "AutoModelForCausalLM",
    "ref_model": "AutoModelForCausalLM",
    "reward_model": "AutoModelForSequenceClassification",
    "value_model": "AutoModelForSequenceClassification",
    "reward_funcs": "AutoModelForSequenceClassification",
}


def check_arguments(
    args: Any, model: Any, ref_model: Any, reward_model: Any, value_model: Any, train_dataset: Any
) -> None:
    """Raise `TypeError` or `ValueError` where the arguments of `PPOTrainer` do not fit together."""
    if not isinstance(args, PPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}, but must be a PPOConfig. The arguments of PPOTrainer are args, "
            "processing_class, model, ... in this order; name them if in doubt."
        )
    roles = {"model": model, "ref_model": ref_model, "reward_model": reward_model, "value_model": value_model}
    for role, given in roles.items():
        check_module(role, given)
    if ref_model is not None and not isinstance(ref_model, str | Path):
        read = getattr(ref_model, "get_output_embeddings", None)
        if read is None or read() is None:
            raise TypeError(
                f"ref_model is a {type(ref_model).__name__}, which has no language-model head: the reference tells "
                "how likely each token is. Give a causal language model, its folder or its id, or leave ref_model out."
            )
    if train_dataset is None:
        raise ValueError("train_dataset is missing: PPO needs prompts.")
    if ref_model is not None and ref_model is model:
        raise ValueError(
            "model and ref_model are one object: the reference would move with the policy. Leave ref_model out, and a "
            "copy is made where one is needed."
        )
    if reward_model is not None and reward_model is value_model:
        raise ValueError(
            "reward_model and value_model are one object: the rewards would move with the critic. Give "
            "critic='reward_model' in the PPOConfig, and the critic is a copy."
        )
    if args.critic_warmup and (value_model or args.critic) == "none":
        raise ValueError("critic_warmup needs a critic, but critic is 'none'.")


def check_module(role: str, given: Any) -> None:
    """Raise `TypeError` where an argument is a module of torch that is no model of transformers."""
    if isinstance(given, nn.Module) and not hasattr(given, "config"):
        own = " A reward of your own is a function in reward_funcs, which may call it." if "reward" in role else ""
        raise TypeError(
            f"{role} is a {type(given).__name__}, a module without a config, which only models of transformers have. "
            f"Give a model as {LOADERS[role]}.from_pretrained loads it, its folder or its id.{own}"
        )


def warn_of_rounding(role: str, model: Any, learning_rate: float) -> None:
    """Say that a model which is trained in half precision hardly learns."""
    if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        logger.warning(
            "The %s's trained weights are in half precision: steps as small as learning_rate %g are mostly "
            "rounded away. Load it with dtype float32, and let bf16=True compute in bfloat16.",
            role, learning_rate,
        )  # fmt: skip


def resolve_policy(model: Any, args: PPOConfig, peft_config: PeftConfig | None) -> Any:
    """The policy: loaded where it is named, with adapters where `peft_config` says so, dropout off.

    Raises:
        `TypeError`: if it is neither a name nor a causal language model; a value-head model is told what replaces it.
        `ValueError`: if adapters are asked for on a model that has some; if it is no decoder.
    """
    if isinstance(model, str | Path):
        adapts = peft_config is not None or is_adapter(model)
        if args.critic == "adapter" and not adapts:
            raise ValueError(
                f"critic is 'adapter', which shares the policy's base, but {str(model)!r} is to be trained whole, so "
                "that no base stays. Give peft_config, or critic='policy', a model of its own."
            )
        if (args.model_init_kwargs or {}).get("quantization_config") is not None and not adapts:
            raise ValueError(_untrainable(str(model)))
        model = load_model(str(model), args)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {model!r}; give a causal language model, its folder or its id. The arguments of PPOTrainer "
            "are args, processing_class, model, ref_model, reward_model, train_dataset, ... in this order."
        )
    if hasattr(model, "v_head"):
        raise TypeError(
            f"model is a {type(model).__name__}, of the value-head classes that TRL removed. PPOTrainer puts a value "
            "head on the policy itself (PPOConfig(critic='head')): give the language model alone."
        )
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError("The model has adapters already, and peft_config asks for more. Leave peft_config out.")
        model = get_peft_model(model, peft_config, adapter_name=args.model_adapter_name or "default")
    if getattr(model, "is_quantized", False) and not isinstance(model, PeftModel):
        raise ValueError(_untrainable(getattr(model, "name_or_path", "") or type(model).__name__))
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"The policy has a learned prompt ({type(model.active_peft_config).__name__}), which PPO cannot train: "
            "log-probabilities are read at the positions of the text itself. Use LoRA."
        )
    if args.model_adapter_name is not None:
        named = list(getattr(model, "peft_config", {}))
        if not isinstance(model, PeftModel) or args.model_adapter_name not in named:
            raise ValueError(
                f"model_adapter_name is {args.model_adapter_name!r}, but the model has "
                f"{'the adapters ' + ', '.join(named) if named else 'no adapters'}."
            )
        model.set_adapter(args.model_adapter_name)
    disable_dropout(model)
    keep_gradients_of_4bit(model)
    check_decoder(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No weight of the policy is trainable, so it could not learn. Load adapters with is_trainable=True, or "
            "give peft_config."
        )
    warn_of_rounding("policy", model, args.learning_rate)
    return model


def _untrainable(name: str) -> str:
    return (
        f"{name!r} is quantized, and its weights have no gradient, so that it cannot be trained whole. Give "
        "peft_config, which trains adapters on it, or load it in full precision."
    )


def resolve_reference(ref_model: Any, args: PPOConfig) -> Any:
    """The reference, loaded where it is named; `None` where none is given."""
    ref_model = args.ref_model_name_or_path if ref_model is None else ref_model
    return load_model(str(ref_model), args) if isinstance(ref_model, str | Path) else ref_model


def resolve_roles(
    value_model: Any,
    args: PPOConfig,
    policy: Any,
    reference: Any,
    reward_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: PeftConfig | None,
) -> ActorCritic:
    """Policy, reference and critic, by default what `args.critic` says; all models must read one vocabulary."""
    critic = build_critic(args.critic if value_model is None else value_model, policy, reward_model, peft_config)
    fit_model(getattr(critic, "model", None), tokenizer)
    readers = {"ref_model": reference, "value_model": getattr(critic, "model", None), "reward_model": reward_model}
    check_same_vocabulary(readers, policy, tokenizer)
    if critic is not None:
        warn_of_rounding("critic", critic, args.learning_rate)
    return ActorCritic(
        policy,
        reference,
        critic=critic or False,
        ref_adapter=args.ref_adapter_name,
        logits_chunk_size=args.logits_chunk_size,
        reuse_trunk=args.reuse_trunk,
    )


def load_model(name: str, args: PPOConfig) -> Any:
    """A causal language model by its folder or id; `model_init_kwargs` go to `from_pretrained`."""
    if args.model_init_kwargs is None:
        return load_policy(ModelArguments(model_name_or_path=name))
    kwargs = {"dtype": ModelArguments().dtype, **args.model_init_kwargs}
    code = {key: kwargs[key] for key in ("revision", "trust_remote_code", "subfolder") if key in kwargs}
    check_decoder_name(check_model_path(name), **code)
    return AutoModelForCausalLM.from_pretrained(check_model_path(name), **kwargs)


def resolve_tokenizer(processing_class: Any, model: Any) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, whose pad token ends no text; a copy where that had to be mended.

    Raises:
        `ValueError`: if there is none to be found.
    """
    if processing_class is None:
        name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", None)
        if not name:
            raise ValueError(
                "No tokenizer was given, and the model does not say where it came from: give processing_class."
            )
        return load_policy_tokenizer(ModelArguments(model_name_or_path=str(name)), padding_side="left")
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # a processor holds one
    ends = {tokenizer.eos_token_id, *ends_of(getattr(model, "generation_config", None))}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        before = tokenizer.pad_token
        tokenizer = ensure_pad_token(copy.deepcopy(tokenizer), ends - {None})
        logger.warning(
            "The tokenizer pads with %r, so the end of a completion could not be told from padding. This run pads "
            "with %r instead; your tokenizer stays as it is.",
            *(before, tokenizer.pad_token),
        )
    return tokenizer


def resolve_reward(
    reward_model: Any,
    reward_funcs: Any,
    weights: Sequence[float] | None,
    processing_classes: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> WeightedSum:
    """All rewards as one weighted sum.

    Args:
        reward_model (`PreTrainedModel`, `str` or callable, *optional*):
            A model shares the policy's tokenizer, as in TRL's PPO; one that is named has its own.
        reward_funcs (`WeightedSum`, a reward, or a list of them, *optional*):
            Callables, models, folders, ids, or mappings as in a YAML.
        processing_classes (a tokenizer or a list of them, *optional*):
            The tokenizers of those rewards that are models, `None` for the others, as in TRL's GRPO.

    Raises:
        `ValueError`: if there is no reward at all, or counts do not match.
    """
    if isinstance(reward_funcs, WeightedSum) and reward_model is None:
        if weights is not None:
            raise ValueError("reward_weights were given, but reward_funcs is a WeightedSum, which has its own.")
        return _checked_for_ppo(reward_funcs)
    given = [] if reward_funcs is None else reward_funcs
    given = list(given) if isinstance(given, list | tuple) else [given]
    own = processing_classes if isinstance(processing_classes, list | tuple) else [processing_classes] * len(given)
    if len(own) != len(given):
        raise ValueError(
            f"{len(own)} reward_processing_classes were given for {len(given)} reward_funcs. Give one for each, None "
            "for those that are functions."
        )
    rewards = [_one_reward(reward, own_tokenizer) for reward, own_tokenizer in zip(given, own, strict=True)]
    if isinstance(reward_model, nn.Module):
        rewards.insert(0, SharedTokenizerReward(reward_model, tokenizer))
    elif reward_model is not None:
        rewards.insert(0, _one_reward(reward_model, None))
    if not rewards:
        raise ValueError("Nothing is rewarded: give reward_funcs or reward_model.")
    return _checked_for_ppo(load_rewards(rewards, weights))


def check_siblings(reward: WeightedSum, num_generations: int, evaluates: bool) -> None:
    """Raise `ValueError` where all rewards need several completions of a prompt, and there will be one."""
    if not all(getattr(func, "wants_siblings", False) for func in reward.reward_funcs):
        return
    if num_generations == 1 or evaluates:
        raise ValueError(
            f"The rewards ({', '.join(reward.names)}) compare the completions of a prompt with each other, and "
            + ("num_generations is 1." if num_generations == 1 else "an evaluation writes one for each prompt.")
            + " Add a reward that applies to a single completion (weight 0 is enough)"
            + (", or raise num_generations." if num_generations == 1 else ", or leave eval_dataset out.")
        )


def _checked_for_ppo(rewards: WeightedSum) -> WeightedSum:
    taken = sorted({*TEXTS, *FIGURES} & set(rewards.names))
    if taken:
        raise ValueError(
            f"A reward is named {taken[0]!r}, as a column of the table of completions is. Give it another name."
        )
    check_can_stand(dict(zip(rewards.names, rewards.reward_funcs, strict=True)))
    for name, func, weight in zip(rewards.names, rewards.reward_funcs, rewards.weights, strict=True):
        if getattr(func, "constant", False) and weight != 0:
            raise ValueError(
                f"Reward {name!r} is the same for all completions of a rollout, and PPO learns from what tells them "
                "apart, so that it would change nothing. Make it a factor of a Product, take a cost that depends on "
                "the completion (Flops, TokenCount), or give it weight 0 to have it logged."
            )
    return rewards


def _one_reward(reward: Any, tokenizer: Any) -> Any:
    """A model is wrapped; what is named is left to `load_rewards`."""
    check_module("reward_funcs", reward)
    if isinstance(reward, nn.Module):
        name = getattr(reward.config, "_name_or_path", "") or None
        short = Path(name).name if name else type(reward).__name__
        return LearnedReward(reward, processing_class=tokenizer or name, name=short)
    return str(reward) if isinstance(reward, Path) else reward
