"""Policy, reference, critic and reward model on one base are four separate copies, in every pair of choices.

The separate copies are loaded by peft and transformers from what was saved, each on a base of its own, and read by
plain forwards. Each role of both is compared, then again after a step of gradient descent.
"""

import itertools
import logging

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rlhf_recipes.modeling.adapters import active_adapter
from rlhf_recipes.modeling.critics import build_critic
from rlhf_recipes.modeling.loading import (
    NOT_IN_4_BIT,
    ModelArguments,
    keep_gradients_of_4bit,
    load_policy,
    load_reward_model,
)
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.rewards import LearnedReward
from tests.architectures import EVERY
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

CHOICES = {
    "policy": ("fresh adapters", "trained adapters", "whole"),
    "reference": ("shared", "own"),
    "critic": ("head", "adapter", "policy", "none"),
    "reward": ("function", "own", "policy"),
    "precision": ("float32", "bfloat16", "8 bit", "4 bit"),
    "adapters": ("LoRA", "rsLoRA", "DoRA"),
}
TOKENIZER = tiny_tokenizer()
PROMPTS, COMPLETIONS = ["The film is", "It was", "What a"], [" a dull script", " bad, but the music", " picture!"]


def is_refused(row):
    """What cannot be, and is told: a base that is trained can be neither shared nor quantized; peft on a CPU."""
    if row["precision"] == "8 bit" and row["adapters"] == "DoRA":
        return True
    shares = row["critic"] == "adapter" or row["reward"] == "policy"
    return row["policy"] == "whole" and (shares or row["precision"].endswith("bit"))


PRODUCT = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
POSSIBLE = [row for row in PRODUCT if not is_refused(row)]


def pairs(row):
    return set(itertools.combinations(sorted(row.items()), 2))


def cover(rows):
    """Few rows in which every pair occurs that occurs in any: the one with the most new pairs each time."""
    wanted, taken = set().union(*map(pairs, rows)), []
    while wanted:
        taken.append(max(rows, key=lambda row: len(pairs(row) & wanted)))
        wanted -= pairs(taken[-1])
    return taken


COVER = cover(POSSIBLE)
REST = [row for row in POSSIBLE if row not in COVER]


def name(row):
    return ", ".join(row.values())


ROWS = [pytest.param(row, id=name(row)) for row in COVER]
ROWS += [pytest.param(row, id=name(row), marks=EVERY) for row in REST]


@pytest.fixture(autouse=True)
def quiet_and_quick(monkeypatch):
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *args: None)  # half of the time of a save
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    before = logger.level
    logger.setLevel(logging.ERROR)  # one line for each product of an 8-bit layer
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return str(
        save_tiny(folder, tiny_causal_lm(TOKENIZER, num_layers=1, hidden_size=64, initializer_range=0.3), TOKENIZER)
    )


def arguments(base, row, **more):
    kinds = {"rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}.get(row["adapters"], {})
    bits = {"8 bit": {"load_in_8bit": True}, "4 bit": {"load_in_4bit": True, "use_bnb_nested_quant": True}}
    options = {"lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"], **kinds}
    dtype = row["precision"] if "float" in row["precision"] else "float32"
    settings = {"model_name_or_path": base, "use_peft": row["policy"] != "whole", "dtype": dtype}
    return ModelArguments(**{**settings, **options, **bits.get(row["precision"], {}), **more})


@torch.no_grad()
def scramble(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def rewards(base, tmp_path_factory):
    """A reward adapter of each kind, trained on the base; one training is like another here."""
    folders = {}
    for kind in CHOICES["adapters"]:
        folder = tmp_path_factory.mktemp(kind) / "reward"
        row = {"adapters": kind, "precision": "float32", "policy": ""}
        model = load_reward_model(arguments(base, row), TOKENIZER)
        scramble(model, seed=5)
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


def batch():
    prompts = [TOKENIZER(text)["input_ids"] for text in PROMPTS]
    answers = [TOKENIZER(text)["input_ids"] for text in COMPLETIONS]
    left, right = max(map(len, prompts)), max(map(len, answers))
    return {
        "prompt_ids": torch.tensor([[0] * (left - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (left - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [0] * (right - len(ids)) for ids in answers]),
        "mask": torch.tensor([[1] * len(ids) + [0] * (right - len(ids)) for ids in answers]),
    }


BATCH = batch()
REAL = BATCH["mask"].bool()
MASK = torch.cat([BATCH["prompt_mask"], BATCH["mask"]], dim=1)
INPUTS = {
    "input_ids": torch.cat([BATCH["prompt_ids"], BATCH["completion_ids"]], dim=1),
    "attention_mask": MASK,
    "position_ids": (MASK.cumsum(dim=1) - 1).clamp(min=0),
    "use_cache": False,
}
OF_COMPLETIONS = slice(BATCH["prompt_ids"].shape[1] - 1, -1)


def plain_logprobs(model):
    logits = model(**INPUTS).logits[:, OF_COMPLETIONS].float()
    return logits.log_softmax(dim=-1).gather(-1, BATCH["completion_ids"][..., None])[..., 0][REAL]


def own_reward(row):
    """Options of a reward with a base of its own; it is not there in 8 bit."""
    return {"bfloat16": {"dtype": "bfloat16"}, "4 bit": {"load_in_4bit": True}}.get(row["precision"], {})


class Together:
    """The roles as a run has them, on one base as far as was asked."""

    def __init__(self, base, row, reward_folder, folder):
        self.row = row
        args = arguments(base, row)
        torch.manual_seed(0)
        self.start = None
        if row["policy"] == "trained adapters":
            begun = load_policy(args)
            scramble(begun, seed=1)
            begun.save_pretrained(folder / "start")
            self.start = args.model_name_or_path = str(folder / "start")
        policy = load_policy(args)
        reference = load_policy(ModelArguments(**{**vars(args), "use_peft": False}), is_trainable=False)
        critic = build_critic(row["critic"], policy)
        self.roles = ActorCritic(policy, reference if row["reference"] == "own" else None, critic=critic or False)
        self.roles.eval()
        self.reward = None
        if row["reward"] == "policy":
            self.reward = LearnedReward(reward_folder, base="policy")
            self.reward.put_on(policy, "reward_of_this")
        elif row["reward"] == "own":
            self.reward = LearnedReward(reward_folder, **own_reward(row))

    def read(self):
        out = self.roles(**BATCH, temperature=1.0)
        values = out["values"][REAL]
        said = {"policy": out["logprobs"][REAL], "critic": values}
        said["reference"] = self.roles.reference_logprobs(**BATCH, temperature=1.0)[REAL]
        said["reward"] = torch.tensor(self.reward(PROMPTS, COMPLETIONS) if self.reward else [])
        return said


class Apart:
    """The same as separate models, each loaded by peft and transformers on a base of its own."""

    def __init__(self, base, row, reward_folder, saved, start):
        self.row = row
        options = {"dtype": getattr(torch, row["precision"] if "float" in row["precision"] else "float32")}
        if row["precision"].endswith("bit"):
            bits = {"8 bit": {"load_in_8bit": True, "llm_int8_threshold": 0.0}}.get(row["precision"]) or {
                "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": torch.float32,
            }  # fmt: skip
            config = BitsAndBytesConfig(**bits, llm_int8_skip_modules=list(NOT_IN_4_BIT))
            options |= {"quantization_config": config, "device_map": {"": "cpu"}}
        whole = row["policy"] == "whole"
        lm = AutoModelForCausalLM if whole else AutoPeftModelForCausalLM
        self.policy = lm.from_pretrained(saved, **options, **({} if whole else {"is_trainable": True}))
        origin = AutoModelForCausalLM if start is None else AutoPeftModelForCausalLM
        self.reference = origin.from_pretrained(start or base, **options)
        self.critic = self.reward = None
        if row["critic"] in ("adapter", "policy") and not whole:
            kwargs = {"num_labels": 1, "is_trainable": True}
            # A copy of the policy holds what its adapters had learned, which no file of peft's says.
            if row["critic"] == "adapter" or start is None:
                auto = AutoPeftModelForSequenceClassification
                self.critic = auto.from_pretrained(saved / "critic", **kwargs, **options)
                if row["critic"] == "adapter":
                    self.critic.get_base_model().score.float()  # as a head of our own is, also on a base in bfloat16
        if row["reward"] == "own":
            plain = own_reward(row)
            options = {"dtype": getattr(torch, plain.get("dtype", "float32"))}
            if plain.get("load_in_4bit"):
                config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                            bnb_4bit_compute_dtype=torch.float32,
                                            llm_int8_skip_modules=list(NOT_IN_4_BIT))  # fmt: skip
                options |= {"quantization_config": config, "device_map": {"": "cpu"}}
        if row["reward"] != "function":
            judge = AutoPeftModelForSequenceClassification.from_pretrained(reward_folder, num_labels=1, **options)
            keep_gradients_of_4bit(judge)
            self.reward = LearnedReward(judge, processing_class=reward_folder)
        for model in (self.policy, self.reference, self.critic):
            if model is not None:
                keep_gradients_of_4bit(model)
                model.eval()

    def read(self):
        said = {"policy": plain_logprobs(self.policy)}
        with torch.no_grad():
            said["reference"] = plain_logprobs(self.reference)
        if self.critic is not None:
            inner = self.critic.get_base_model()
            hidden = inner.model(**INPUTS).last_hidden_state[:, OF_COMPLETIONS]
            said["critic"] = inner.score(hidden.to(inner.score.weight.dtype))[..., 0].float()[REAL]
        if self.reward is not None:
            said["reward"] = torch.tensor(self.reward(PROMPTS, COMPLETIONS))
        return said


def step(trained, said):
    """Gradient descent on something of policy and critic."""
    loss = said["policy"].mean()
    if said.get("critic") is not None and said["critic"].requires_grad:
        loss = loss + ((said["critic"] - 1) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
                parameter.grad = None


def trained_of(*models):
    return [p for model in models if model is not None for p in model.parameters() if p.requires_grad]


def compare(one, other, tolerance):
    for role, expected in other.items():
        if len(expected):
            distance = ((one[role] - expected).abs() / expected.abs().clamp(min=1)).max().item()
            assert distance < tolerance, f"{role}: {distance}"


@pytest.mark.parametrize("row", ROWS)
def test_on_one_base_each_role_says_what_it_says_on_a_base_of_its_own(base, rewards, tmp_path, row):
    if row["precision"].endswith("bit"):
        pytest.importorskip("bitsandbytes")
    reward_folder = rewards[row["adapters"]]
    together = Together(base, row, reward_folder, tmp_path)
    roles = together.roles
    flags = {path: parameter.requires_grad for path, parameter in roles.named_parameters()}
    still = {path: p.detach().clone() for path, p in roles.named_parameters() if not p.requires_grad}
    roles.save_pretrained(tmp_path / "saved")
    apart = Apart(base, row, reward_folder, tmp_path / "saved", together.start)
    reference = together.read()["reference"]
    # Where states are rounded coarsely, a weight that differs by 1e-8 after a step moves some to the next number.
    for tolerance in (1e-5, 1e-2 if row["precision"] == "bfloat16" else 1e-5):
        one, other = together.read(), apart.read()
        compare(one, other, tolerance)
        if row["critic"] != "head":  # its gradient reaches the policy, which has no copy of the head here
            step(trained_of(roles), one)
            step(trained_of(apart.policy, apart.critic), other)
    assert torch.equal(one["reference"], reference)  # trl#1340
    # Nothing is trained that should not be, and every role has left the switches as they were.
    assert {path: parameter.requires_grad for path, parameter in roles.named_parameters()} == flags
    assert all(torch.equal(tensor, dict(roles.named_parameters())[path]) for path, tensor in still.items())
    if isinstance(roles.policy, PeftModel):
        assert roles.policy.active_adapters == ["default"]
        with active_adapter(roles.policy, None), torch.no_grad():
            untouched = plain_logprobs(roles.policy)
        if together.start is None:
            assert torch.equal(untouched, plain_logprobs(apart.reference).detach())


def test_every_pair_of_choices_occurs():
    every = set().union(*map(pairs, POSSIBLE))
    assert set().union(*map(pairs, COVER)) == every
    missing = set().union(*map(pairs, PRODUCT)) - every
    assert {tuple(value for _, value in pair) for pair in missing} == {
        ("adapter", "whole"), ("whole", "policy"), ("whole", "8 bit"), ("whole", "4 bit"), ("DoRA", "8 bit"),
    }  # fmt: skip


@pytest.mark.parametrize("bits", ["8 bit", "4 bit"])
def test_a_quantized_model_is_not_trained_whole(base, bits):
    row = {"policy": "whole", "precision": bits, "adapters": "LoRA"}
    with pytest.raises(ValueError, match=rf"load_in_{bits[0]}bit holds the weights in {bits}.*Add use_peft"):
        load_policy(arguments(base, row))
    with pytest.raises(ValueError, match="Add use_peft"):
        load_reward_model(arguments(base, row), TOKENIZER)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it trains")
def test_dora_in_8_bit_is_refused_on_a_cpu(base):
    row = {"policy": "fresh adapters", "precision": "8 bit", "adapters": "DoRA"}
    with pytest.raises(ValueError, match="use_dora with load_in_8bit cannot be trained on a CPU.*in 4 bit"):
        load_policy(arguments(base, row))


def test_a_base_that_is_trained_is_shared_with_nobody(base, rewards):
    policy = load_policy(arguments(base, {"policy": "whole", "precision": "float32", "adapters": "LoRA"}))
    with pytest.raises(ValueError, match=r"The critic is to share .* no adapters.*use_peft"):
        build_critic("adapter", policy)
    with pytest.raises(ValueError, match=r"The reward .* is to share .* no adapters"):
        LearnedReward(rewards["LoRA"], base="policy").put_on(policy, "reward")
