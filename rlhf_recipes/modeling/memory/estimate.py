"""What a run will take, moment by moment, from its options alone.

At every moment there are the process itself, the weights of all roles, and the states of the optimizer. On top come:

- sampling: keys and values of the texts that are written at a time, for each layer; the logits of one token of each,
  with what the draw makes of them (see `DRAW`); on a CPU copies of the weights (`packed weights`);
- reading, by policy, reference and critic: one layer at a time of the texts that are read at a time, and the output
  layer for a chunk of tokens;
- scoring: the same for each reward model, with the batch of its own;
- the update: the gradients, and what a micro-batch needs for its backward pass, of the layers that are trained.

What the frozen layers say of a rollout is kept from sampling to the last update (`kept states`). The need of a run is
that of its worst moment. Not counted: what a kernel uses inside of itself, what an allocator leaves between tensors,
the rows of the dataset.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rlhf_recipes.modeling.generation.packed import packed_bytes
from rlhf_recipes.modeling.logprobs import base_of
from rlhf_recipes.modeling.memory import built
from rlhf_recipes.modeling.memory.machines import Machine
from rlhf_recipes.modeling.memory.packed import pack, unpacked_at_a_time
from rlhf_recipes.modeling.memory.passes import Computing, Texts, cache, reading, update
from rlhf_recipes.modeling.memory.roles import RoleMemory, kept_states, memory_of_roles
from rlhf_recipes.modeling.memory.settings import OF_TRL, SAMPLED, TRAINED, RunArguments, completed
from rlhf_recipes.modeling.memory.tracked import NOTHING, Pass
from rlhf_recipes.modeling.trunk.split import split_of

# For each token of the vocabulary and each text: a copy of its logit in float32, the same at the temperature, its
# probability (4 bytes each), and whether it was drawn (1 byte).
DRAW = 13
# Losses of reward models whose rows have one text. Those of other losses have two, or more where more were ranked.
ONE_TEXT = ("pairs_in_batch", "mse", "mae", "huber", "ordinal", "classification", "binary_cross_entropy")


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes on one process."""

    recipe: str
    machine: Machine
    roles: list[RoleMemory]
    moments: dict[str, dict[str, int]]  # what comes on top, by name
    notes: list[str] = field(default_factory=list)  # what could not be counted

    def at(self, moment: str) -> int:
        """All that is there at a moment."""
        held = sum(role.weights + (role.optimizer or 0) for role in self.roles)
        gradients = sum(role.gradients for role in self.roles) if moment == "update" else 0
        return self.machine.process + held + gradients + sum(self.moments[moment].values())

    @property
    def worst(self) -> str:
        """The moment that decides."""
        return max(self.moments, key=self.at)

    @property
    def total(self) -> int:
        return self.at(self.worst)

    @property
    def fits(self) -> bool:
        return self.total <= self.machine.size


def estimate(given: RunArguments, recipe: str, machine: Machine, prompt_tokens: int | None = None) -> Estimate:
    """Work out what a run will take.

    Args:
        given ([`RunArguments`]): Its options; those that are left out are as the recipe has them.
        prompt_tokens (`int`, *optional*): Of the longest prompt. Default: `max_prompt_length`, all that it may have.

    Raises:
        `FileNotFoundError`: if the config of a model that is trained or sampled is not to be had.
        `ValueError`: if a run of this recipe needs a model and none is named.
    """
    run = completed(given, recipe, machine.is_gpu)
    return _Run(run, recipe, machine, prompt_tokens or run.max_prompt_length or 512).estimate()


class _Run:
    """One run, and the models that it holds."""

    def __init__(self, run: RunArguments, recipe: str, machine: Machine, prompt: int) -> None:
        self.run, self.recipe, self.machine = run, recipe, machine
        self.notes: list[str] = []
        self.prompt, self.completion = prompt, run.max_completion_length or 0
        if recipe not in SAMPLED:
            self.prompt, self.completion = 0, run.max_length or prompt
        self.policy = self._policy()
        self.critic = built.critic(run.critic or "none", self.policy, run) if recipe == "ppo" else None
        self.reference = self._reference()
        self.rewards = self._rewards()

    def estimate(self) -> Estimate:
        moments: dict[str, dict[str, int]] = {}
        if self.recipe in SAMPLED:
            moments |= {"sampling": self._sampling(), "reading": self._reading()}
        if self.rewards or not self.policy:
            moments["scoring"] = self._scoring()
        if self.recipe in TRAINED:
            moments["update"] = self._update()
        elif self.policy and not moments:
            moments["reading"] = self._reading()
        if self.run.load_in_4bit or self.run.load_in_8bit:  # after the passes, which compute on numbers
            bits = 4 if self.run.load_in_4bit else 8
            for model in (self.policy, self.reference, self.critic):
                if model is not None:
                    pack(model, bits, self.run.use_bnb_nested_quant)
        for reward, model in self.rewards:
            if reward.args.get("load_in_4bit") and model is not None:
                pack(model, 4, False)
        return Estimate(self.recipe, self.machine, self._counted(), moments, self.notes)

    # ---- models

    def _policy(self) -> Any:
        run = self.run
        if run.model_name_or_path is None:
            if self.recipe in TRAINED or self.recipe in SAMPLED:
                raise ValueError(
                    "No model is named: give model_name_or_path, a folder or id. (A preset is a part of a run: give "
                    "it before the run's own YAML, as --config preset.yaml --config run.yaml.)"
                )
            return None
        if self.recipe.startswith("reward") and self.recipe not in TRAINED:
            config = built.config_of(run.model_name_or_path)
            return built.build(built.ENCODER, config, "float32").requires_grad_(False)
        kind = built.CLASSIFIER if self.recipe.startswith("reward") else built.LANGUAGE_MODEL
        policy = built.trained_model(run, kind, run.num_frozen_layers or 0)
        return policy if self.recipe in TRAINED else policy.requires_grad_(False)

    def _reference(self) -> Any:
        run, adapted = self.run, hasattr(self.policy, "peft_config")
        needs = self.recipe in ("ppo", "dpo") or (self.recipe in OF_TRL and self.recipe != "sft" and bool(run.beta))
        if run.ref_model_name_or_path:
            return built.frozen_copy(run, run.ref_model_name_or_path)
        return built.frozen_copy(run) if needs and not adapted else None

    def _rewards(self) -> list[tuple[built.RewardModel, Any]]:
        models: list[tuple[built.RewardModel, Any]] = []
        for reward in built.reward_models([*(self.run.reward_funcs or ()), *(self.run.judge_funcs or ())]):
            try:
                models.append((reward, built.reward(reward, self.machine.is_gpu)))
            except (OSError, ValueError) as error:
                self.notes.append(f"reward {reward.name} is not counted: {error}")
        return models

    def _counted(self) -> list[RoleMemory]:
        run = self.run
        args = SimpleNamespace(
            optim=_optimizer(run.optim), optim_args=run.optim_args, world_size=1, deepspeed_plugin=None,
            learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
        )  # fmt: skip
        roles: dict[str, nn.Module | None] = {}
        if self.policy is not None:
            roles["policy" if self.recipe in SAMPLED or self.recipe in OF_TRL else "model"] = self.policy
        if self.recipe in ("ppo", "dpo", "grpo", "rloo"):
            roles["reference"] = self.reference
        if self.critic is not None:
            roles["critic"] = self.critic
        roles |= {f"reward {reward.name}": model for reward, model in self.rewards}
        counted = memory_of_roles(roles, args)
        if self.reference is None and not run.beta and self.recipe in ("grpo", "rloo"):
            counted = [role for role in counted if role.role != "reference"]
        copied = self._sampling_copy()
        return counted + ([RoleMemory("sampling copy", copied, 0, 0, str(run.rollout_dtype))] if copied else [])

    def _sampling_copy(self) -> int:
        """Bytes of the weights that are sampled from in a precision of their own; what is packed is shared."""
        wanted = getattr(torch, self.run.rollout_dtype) if self.run.rollout_dtype else None
        if wanted is None or self.policy is None or self.policy.dtype == wanted:
            return 0
        return sum(p.numel() for p in self.policy.parameters() if p.is_floating_point()) * wanted.itemsize

    # ---- moments

    @property
    def _itemsize(self) -> int:
        return int(self.policy.dtype.itemsize)

    @property
    def _rollout(self) -> tuple[int, int, int]:
        """Episodes of a rollout, of an optimizer step, and of those that are sampled and read at a time."""
        run = self.run
        micro = run.per_device_train_batch_size or 8
        if self.recipe not in TRAINED:
            return 0, 0, run.batch_size or 64
        if self.recipe in OF_TRL:
            return 0, 0, micro * (run.steps_per_generation or run.gradient_accumulation_steps or 1)
        rollout = micro * (run.gradient_accumulation_steps or 1)
        return rollout, -(-rollout // (run.num_mini_batches or 1)), min(rollout, run.rollout_forward_batch_size or 64)

    def _how(self) -> Computing:
        run = self.run
        half = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else None
        chunk = {"ppo": run.logits_chunk_size, "evaluate": 256}.get(self.recipe)  # as recipes/evaluate.py has it
        checkpointing = bool(run.gradient_checkpointing) and self.recipe in TRAINED
        return Computing(half, checkpointing, chunk, bool(run.entropy_coef))

    def _kept(self) -> int:
        """Bytes of the kept states of a rollout; 0 where there are none, or they would be too many."""
        run = self.run
        if self.recipe != "ppo" or not run.reuse_trunk or not split_of(self.policy).depth:
            return 0
        width = base_of(self.policy).config.get_text_config().hidden_size
        kept = kept_states(self._rollout[0], self.prompt + self.completion, width, self._itemsize)
        return kept if kept / 1e9 <= (run.trunk_memory_gb or 0) else 0

    def _sampling(self) -> dict[str, int]:
        rows = self._rollout[2]
        texts = Texts(rows, self.prompt, self.completion)
        passed = self._pass(lambda: cache(self.policy, texts, self._how()), self.policy)
        vocabulary = base_of(self.policy).config.get_text_config().vocab_size
        return {
            "keys and values": passed.kept,
            "computing": passed.peak - passed.kept,
            "logits and draw": rows * vocabulary * (self._itemsize + DRAW),
            "kept states": self._kept(),
            "packed weights": self._packed(),
        }

    def _packed(self) -> int:
        """Bytes of the copies that decode faster on a CPU; TRL's own trainers make none."""
        if self.machine.is_gpu or self.recipe in OF_TRL:
            return 0
        wanted = getattr(torch, self.run.rollout_dtype) if self.run.rollout_dtype else self.policy.dtype
        return packed_bytes(self.policy, self.run.packed_decoding or "all") * wanted.itemsize // self._itemsize

    def _reading(self) -> dict[str, int]:
        """The states are there twice while they are put together, and with them what the output layer read (T of
        P + T columns)."""
        rows, kept = self._rollout[2], self._kept()
        texts = Texts(rows, self.prompt, self.completion)
        passed = NOTHING
        for model in (self.policy, self.reference, self.critic):
            if model is not None and hasattr(model, "config"):
                by = "states" if model is self.critic or self.recipe.startswith("reward_") else "logprobs"
                passed = passed.then(self._pass(lambda: reading(model, texts, self._how(), by), model))  # noqa: B023
        columns = 2 * kept_states(rows, texts.length, _width(self.policy), self._itemsize) if kept else 0
        head = kept * self.completion // max(texts.length, 1)
        return {"computing": passed.peak + columns, "kept states": 2 * kept + head}

    def _scoring(self) -> dict[str, int]:
        passed = NOTHING
        for reward, model in self.rewards:
            reader = self.policy if reward.on_policy else model
            if reader is None:
                continue
            config = base_of(reader).config.get_text_config()
            most = reward.args.get("max_length") or getattr(config, "max_position_embeddings", None) or 10**9
            length = min(most, self.prompt + self.completion)
            rows = min(reward.args.get("batch_size") or 32, self._rollout[0] or 32)
            texts = Texts(rows, 0, length)
            passed = passed.then(self._pass(lambda: reading(reader, texts, Computing(), "states"), reader))  # noqa: B023
        return {"computing": passed.peak, "kept states": self._kept()}

    def _update(self) -> dict[str, int]:
        """The kept states of an optimizer step's rows are copied out of those of the rollout."""
        how = self._how()
        texts, by = self._micro_batch()
        rollout, mini, _ = self._rollout
        kept = self._kept()
        split = split_of(self.policy)
        trained = len(split.layers) - split.depth
        passed = self._pass(lambda: update(self.policy, trained, texts, how, by), self.policy)
        if how.checkpointing and not kept:  # the layers below keep their input too
            below = split.depth * kept_states(texts.rows, texts.length, _width(self.policy), self._itemsize)
            passed = Pass(passed.kept + below, passed.peak + below)
        if self.critic is not None and not getattr(self.critic, "reads_policy", False):
            of_critic = self.critic if hasattr(self.critic, "config") else self.policy
            divided = split_of(of_critic)
            layers = len(divided.layers) - divided.depth
            also = self._pass(lambda: update(of_critic, layers, texts, how, "states"), of_critic)
            passed = passed.beside(also)
        weights = [p for p in self.policy.parameters() if p.requires_grad]
        # At the end of the backward pass, when nothing else is left, an embedding's gradient is there twice.
        embedding = base_of(self.policy).get_input_embeddings().weight
        ending = embedding.numel() * embedding.element_size() if any(embedding is p for p in weights) else 0
        parts = {"computing": max(passed.peak, ending)}
        if kept:
            parts["kept states"] = kept + kept * mini // max(rollout, 1)
        return parts

    def _micro_batch(self) -> tuple[Texts, str]:
        """The texts of a forward and backward pass, and what of them makes the loss."""
        run, rows = self.run, self.run.per_device_train_batch_size or 8
        if self.recipe == "ppo":
            rows = min(rows, self._rollout[1])
            if run.max_tokens_per_batch:
                rows = min(rows, max(1, run.max_tokens_per_batch // (self.prompt + self.completion)))
            return Texts(rows, self.prompt, self.completion), "logprobs"
        if self.recipe in ("grpo", "rloo"):
            return Texts(rows, self.prompt, self.completion), "demonstrations"
        if self.recipe == "dpo":
            return Texts(2 * rows, 0, self.completion), "demonstrations"
        if self.recipe == "sft":
            return Texts(rows, 0, self.completion), "logits"
        return Texts(rows * (1 if run.loss in ONE_TEXT else 2), 0, self.completion), "states"

    def _pass(self, measure: Callable[[], Pass], model: Any) -> Pass:
        """What a pass takes; nothing, and a note, where the model's code does not run on shapes alone."""
        try:
            passed = measure()
        except Exception as error:  # of the code of any model
            said = str(error).strip().split("\n")[0][:120]
            note = f"what {type(base_of(model)).__name__} computes is not counted: {type(error).__name__}: {said}"
            self.notes += [] if note in self.notes else [note]
            return NOTHING
        packed = unpacked_at_a_time(model, self._itemsize) if self.run.load_in_4bit else 0
        return Pass(passed.kept, passed.peak + packed)


def _width(model: Any) -> int:
    return int(base_of(model).config.get_text_config().hidden_size)


def _optimizer(name: str | None) -> Any:
    from transformers.training_args import OptimizerNames

    try:
        return OptimizerNames(name or "adamw_torch")
    except ValueError:
        raise ValueError(f"optim {name!r} is no optimizer of the Trainer: {', '.join(OptimizerNames)}.") from None


def as_mapping(found: Estimate) -> Mapping[str, Any]:
    """An estimate for machines: bytes, by role and by moment."""
    return {
        "recipe": found.recipe,
        "machine": dataclasses.asdict(found.machine),
        "roles": [dataclasses.asdict(role) for role in found.roles],
        "moments": {name: {**parts, "all": found.at(name)} for name, parts in found.moments.items()},
        "worst": found.worst,
        "total": found.total,
        "fits": found.fits,
        "notes": found.notes,
    }
