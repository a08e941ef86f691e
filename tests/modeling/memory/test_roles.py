"""Bytes counted by hand on layers of a few numbers, and optimizer states counted in optimizers that have stepped."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from rlhf_recipes.modeling.memory.roles import RoleMemory, Zero, memory_line, memory_of_roles, zero_of
from rlhf_recipes.texts import readable_bytes
from tests.tiny import tiny_causal_lm, tiny_tokenizer


def arguments(optim="adamw_torch", optim_args=None, **more):
    betas = {"learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    return SimpleNamespace(
        optim=OptimizerNames(optim), optim_args=optim_args, world_size=1, deepspeed_plugin=None, **betas, **more
    )


def with_zero(stage, world=4, bf16=False, optim="adamw_torch", **zero):
    config = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": stage, **zero}}
    args = arguments(optim, bf16=bf16, fp16=False)
    args.world_size, args.deepspeed_plugin = world, SimpleNamespace(deepspeed_config=config)
    return args


def frozen(module):
    return module.requires_grad_(False)


def one(module, args=None, role="policy"):
    (counted,) = memory_of_roles({role: module}, args or arguments())
    return counted


# ---- weights, gradients, states


def test_a_layer_that_is_trained():
    # 10 x 5 weights and 5 biases are 55 numbers of 4 bytes; AdamW keeps two more for each.
    counted = one(nn.Linear(10, 5))
    assert counted == RoleMemory("policy", weights=220, gradients=220, optimizer=440)
    assert counted.total == 880


def test_a_frozen_layer_has_weights_alone():
    assert one(frozen(nn.Linear(10, 5))) == RoleMemory("policy", 220, 0, 0)


def test_bytes_are_those_of_the_type():
    assert one(nn.Linear(10, 5).to(torch.bfloat16)) == RoleMemory("policy", 110, 110, 220)


def test_buffers_are_counted_with_the_weights():
    # weight, bias, mean and variance of 4 numbers each, and a count of 8 bytes
    assert one(nn.BatchNorm1d(4)) == RoleMemory("policy", 4 * 16 + 8, 32, 64)


def test_adapters_alone_are_trained():
    tokenizer = tiny_tokenizer()
    base = tiny_causal_lm(tokenizer)
    plain = one(frozen(copy.deepcopy(base)))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(base, config)
    # Two layers, two matrices each, of 32 -> 2 and 2 -> 32: 4 x 128 numbers.
    assert one(policy) == RoleMemory("policy", plain.weights + 2048, 2048, 4096)


def test_the_numbers_of_a_tiny_llama():
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    # Embeddings and head; per layer four attention matrices, three of the MLP and two norms; the last norm. The
    # positions have 16 / 2 frequencies, kept twice.
    numbers = 2 * len(tokenizer) * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert one(model) == RoleMemory("policy", 4 * (numbers + 16), 4 * numbers, 8 * numbers)
    tied = tiny_causal_lm(tokenizer, tie_word_embeddings=True)
    assert one(tied).gradients == 4 * (numbers - len(tokenizer) * 32)


# ---- roles that share


def test_what_two_roles_hold_is_counted_with_the_first():
    body, head = nn.Linear(10, 5), nn.Linear(5, 1)
    counted = memory_of_roles({"policy": body, "critic": nn.Sequential(body, head)}, arguments())
    assert counted == [
        RoleMemory("policy", 220, 220, 440),
        RoleMemory("critic", 24, 24, 48, note="the rest is shared"),
    ]


def test_a_copy_is_counted_and_a_view_is_not():
    layer = nn.Linear(10, 5)
    other = nn.Linear(10, 5)
    other.weight = nn.Parameter(layer.weight.data, requires_grad=False)  # another object on the same memory
    counted = memory_of_roles({"policy": layer, "copy": copy.deepcopy(layer), "other": other}, arguments())
    assert [part.weights for part in counted] == [220, 220, 20]


def test_a_role_without_a_model_takes_nothing():
    head = nn.Linear(5, 1)
    head.reads_policy = True
    counted = memory_of_roles({"reference": None, "critic": head, "reward": None}, arguments())
    assert counted == [
        RoleMemory("reference", 0, 0, 0, "adapters off"),
        RoleMemory("critic", 24, 24, 48, "head on the policy"),
        RoleMemory("reward", 0, 0, 0),
    ]


def test_weights_without_memory_yet_are_told_apart():
    with torch.device("meta"):
        assert one(nn.Sequential(nn.Linear(10, 5), nn.Linear(10, 5))).weights == 440


# ---- optimizers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        *(("adamw_torch", None), ("adafactor", None), ("adagrad", None), ("sgd", None), ("sgd", "momentum=0.9")),
        *(("sgd", "momentum = 0, dampening=0"), ("rmsprop", None), ("rmsprop", "momentum=0.5,alpha=0.9")),
    ],
)
def test_states_are_as_many_bytes_as_the_optimizer_of_the_trainer_has(tmp_path, optim, optim_args, dtype):
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)).to(dtype)
    model[2].requires_grad_(False)
    args = TrainingArguments(
        output_dir=str(tmp_path), optim=optim, optim_args=optim_args, use_cpu=True, report_to="none"
    )
    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], **kwargs)
    model(torch.arange(7)).sum().backward()
    optimizer.step()
    real = [
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step" and isinstance(value, torch.Tensor)
    ]
    assert one(model, args).optimizer == sum(real)


@pytest.mark.parametrize(("optim", "name"), [("adamw_bnb_8bit", "AdamW8bit"), ("lion_8bit", "Lion8bit")])
def test_states_of_one_byte(optim, name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    large, small = nn.Parameter(torch.zeros(50, 100)), nn.Parameter(torch.zeros(100))
    optimizer = getattr(bitsandbytes.optim, name)([large, small])
    for index, parameter in enumerate((large, small)):
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    real = [
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not key.startswith("qmap")  # one table for all parameters
    ]
    # Of the large one a byte for each number and 4 bytes for each begun 256, of the small one 4 bytes for each number.
    assert sum(real) == {"adamw_bnb_8bit": 2, "lion_8bit": 1}[optim] * (5000 + 20 * 4 + 400)
    assert one(nn.ParameterList([large, small]), arguments(optim)).optimizer == sum(real)


def test_embeddings_keep_states_of_four_bytes():
    assert one(nn.Embedding(100, 50), arguments("adamw_8bit")).optimizer == 2 * 4 * 5000
    assert one(nn.Linear(100, 50, bias=False), arguments("adamw_8bit")).optimizer == 2 * (5000 + 80)
    assert one(nn.Linear(100, 50, bias=False), arguments("paged_adamw_32bit")).optimizer == 2 * 4 * 5000


def test_an_optimizer_that_is_not_known_is_said_to_be_so():
    args = arguments("galore_adamw")
    assert one(nn.Linear(10, 5), args).optimizer is None
    assert one(frozen(nn.Linear(10, 5)), args).optimizer == 0
    assert memory_line({"policy": nn.Linear(10, 5)}, args) == (
        "Memory before activations: policy 220 bytes + gradients 220 bytes + optimizer unknown; "
        "total 440 bytes without the states of galore_adamw."
    )


# ---- quantized weights


@pytest.mark.parametrize("twice", [False, True])
def test_four_bit_weights_with_what_is_needed_to_read_them(twice):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=True, compress_statistics=twice, quant_type="nf4")
    frozen(layer.to("cpu"))
    # 4096 half bytes, a bias of 64 numbers, the 16 values of a half byte, one scale for each of 64 blocks.
    weights = 2048 + 256 + 64 + 64 * 4
    # Quantized twice, scales are bytes, with a mean, the 256 values of a byte and one scale of their own.
    weights_twice = 2048 + 256 + 64 + 64 + 4 + 1024 + 4
    assert one(layer) == RoleMemory("policy", weights_twice if twice else weights, 0, 0)


def test_eight_bit_weights():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False).to("cpu")
    assert one(layer) == RoleMemory("policy", 4096 + 64 * 4, 0, 0)  # a byte each, and a scale for each row


# ---- ZeRO


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # 55 numbers in 16 bit: 110 and 110 bytes, and 12 bytes each for the float32 copy and two states, 660.
    [(0, 110, 110, 660), (1, 110, 110, 165), (2, 110, 28, 165), (3, 28, 28, 165)],
)
def test_zero_divides_more_with_each_stage(stage, weights, gradients, optimizer):
    assert one(nn.Linear(10, 5), with_zero(stage, bf16=True)) == RoleMemory("policy", weights, gradients, optimizer)


def test_zero_in_full_precision_keeps_a_copy_too():
    assert one(nn.Linear(10, 5), with_zero(2, world=1)) == RoleMemory("policy", 220, 220, 3 * 220)


def test_zero_turns_frozen_weights_of_a_trained_role_into_16_bit_and_leaves_frozen_roles():
    policy = nn.Sequential(frozen(nn.Linear(10, 5)), nn.Linear(5, 1))  # 55 frozen numbers and 6 trained
    reference = frozen(nn.Linear(10, 5))
    counted = memory_of_roles({"policy": policy, "reference": reference}, with_zero(3, world=2, bf16=True))
    assert counted == [RoleMemory("policy", 61, 6, 36), RoleMemory("reference", 220, 0, 0)]


def test_weights_loaded_in_parts_are_divided_also_where_they_are_frozen():
    layer = frozen(nn.Linear(10, 5, bias=False))
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    layer.weight.ds_numel = 50  # what DeepSpeed leaves of a weight whose parts lie on all processes
    assert one(layer, with_zero(3, world=4)).weights == 50


def test_the_configuration_is_read():
    args = with_zero(3, world=2, bf16=True, offload_optimizer={"device": "cpu"}, offload_param={"device": "none"})
    assert zero_of(args) == Zero(3, 2, True, ("optimizer",))
    args.deepspeed_plugin.deepspeed_config = {"fp16": {"enabled": True}}
    assert zero_of(args) == Zero(0, 2, True, ())
    assert zero_of(arguments()) == Zero()


# ---- telling


def test_the_line():
    head = nn.Linear(576, 1)
    head.reads_policy = True
    policy = nn.Sequential(frozen(nn.Linear(10_000, 50)), nn.Linear(50, 20))
    policy.config = LlamaConfig(vocab_size=49_152)
    roles = {
        "policy": policy,
        "reference": None,
        "critic": head,
        "reward MiniLM": frozen(nn.Linear(1000, 100)),
    }
    assert memory_line(roles, arguments(), logits_tokens=1000) == (
        "Memory before activations: policy 2 MB + gradients 4.1 kB + optimizer 8.2 kB, reference 0 (adapters off), "
        "critic 2.3 kB + gradients 2.3 kB + optimizer 4.6 kB (head on the policy), reward MiniLM 400 kB; "
        "total 2.4 MB. Largest logits: 1000 tokens x 49152 words x 4 bytes = 197 MB."
    )


def test_the_vocabulary_is_that_of_the_policy():
    tokenizer = tiny_tokenizer()
    line = memory_line({"policy": tiny_causal_lm(tokenizer)}, arguments(), logits_tokens=10)
    assert (
        f"Largest logits: 10 tokens x {len(tokenizer)} words x 4 bytes = {len(tokenizer) * 40 / 1000:.0f} kB." in line
    )
    with pytest.raises(ValueError, match="how large the vocabulary is"):
        memory_line({"policy": nn.Linear(10, 5)}, arguments(), logits_tokens=10)


def test_the_line_says_what_zero_divides():
    args = with_zero(2, world=4, offload_optimizer={"device": "cpu"})
    assert memory_line({"policy": nn.Linear(10, 5)}, args) == (
        "Memory before activations: policy 220 bytes + gradients 55 bytes + optimizer 165 bytes; total 440 bytes on "
        "each process: ZeRO stage 2 divides optimizer states, gradients of what is trained by 4 and keeps optimizer "
        "states off the device."
    )


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *((0, "0"), (999, "999 bytes"), (1000, "1 kB"), (9_940, "9.9 kB"), (9_960, "10 kB"), (999_499, "999 kB")),
        *((999_600, "1 MB"), (538_060_032, "538 MB"), (4_100_000, "4.1 MB"), (14_960_000_000, "15 GB")),
        *((2_500_000_000_000, "2.5 TB"), (2_500_000_000_000_000, "2500 TB")),
    ],
)
def test_bytes_in_words(size, words):
    assert readable_bytes(size) == words
