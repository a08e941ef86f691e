import dataclasses
import math
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_recipes.modeling.cost.flops import (
    KNOWN,
    DecoderShape,
    LayerShape,
    completion_flops,
    decoder_shape,
    parameters_active,
)
from rlhf_recipes.rewards import Discount, RewardError, WeightedSum
from rlhf_recipes.rewards.compute import ActiveParameters, Flops, TokenCount
from rlhf_recipes.rewards.loading import load_reward
from tests.ppo.helpers import many_short_tokens, tiny_policy, trainer
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

SMALL = DecoderShape(active_weights=432, head_weights=88, layers=(LayerShape(8),))

# --- Operations ---------------------------------------------------------------------------------

COMMON = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
OPT = {"vocab_size": 61, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
       "max_position_embeddings": 64}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
# Tiny models of every kind that is known, grouped queries, own head sizes, windows and projections among them.
TINY = {
    "gemma": COMMON | {"head_dim": 10},
    "gemma2": COMMON | {"head_dim": 10, "sliding_window": 6},
    "gemma3_text": COMMON | {"head_dim": 10, "sliding_window": 6, "sliding_window_pattern": 2},
    "granite": COMMON,
    "llama": COMMON,
    "mistral": COMMON | {"head_dim": 10, "sliding_window": 6},
    "olmo": COMMON,
    "olmo2": COMMON,
    "phi3": COMMON | {"sliding_window": 6},
    "qwen2": COMMON | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": COMMON | {"head_dim": 10},
    "smollm3": COMMON,
    "gpt2": GPT2,
    "gpt_neox": {key: value for key, value in COMMON.items() if key != "num_key_value_heads"},
    "opt": OPT | {"word_embed_proj_dim": 16},
    "phi": COMMON,
    "starcoder2": COMMON | {"sliding_window": 6},
    "mixtral": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "olmoe": COMMON | {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": COMMON | EXPERTS | {"decoder_sparse_step": 2, "shared_expert_intermediate_size": 20},
    "qwen3_moe": COMMON | EXPERTS | {"mlp_only_layers": [0]},
}


def tiny_model(kind, attention="eager", **options):
    config = AutoConfig.for_model(kind, **TINY[kind] | options)
    # The counter does not see the grouped product in which experts are computed by default.
    how = {"experts_implementation": "eager"} if kind in MIXTURES else {}
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, **how).eval()


def fused_attention(query, key, value, *args, **kwargs):
    return sdpa_flop_count(query, key, value)


def counted(model, prompt_tokens, completion_tokens):
    """What torch's counter sees while the model writes a completion."""
    ids = torch.full((1, prompt_tokens), 5)
    # The kernel for CPUs is missing in the counter's table; its formula is there.
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_attention}
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter, torch.no_grad():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=completion_tokens,
            min_new_tokens=completion_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    assert written.shape[1] == prompt_tokens + completion_tokens
    return counter.get_total_flops()


def test_operations_of_a_small_decoder_by_hand():
    # Queries 8x8, keys and values 8x4 each, output 8x8, and an MLP of three 8x10: 432 weights, for 3 + 2 - 1 tokens.
    # The head of 8x11 for 2 tokens. Attention of 2 heads of 4 numbers, scores and values: 3 x 3 and 1 x 4 pairs.
    by_hand = 2 * 4 * 432 + 2 * 2 * 88 + 4 * 8 * (9 + 4)
    assert completion_flops(SMALL, 3, 2) == by_hand == 4224
    numbers = {"hidden_size": 8, "vocab_size": 11, "num_hidden_layers": 1, "intermediate_size": 10, "pad_token_id": 0,
               "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    assert decoder_shape(LlamaConfig(**numbers)) == SMALL
    # With a window of 3 the second token looks back on 3 tokens instead of 4.
    narrow = dataclasses.replace(SMALL, layers=(LayerShape(8, window=3),))
    assert completion_flops(narrow, 3, 2) == 4224 - 4 * 8


def test_every_kind_that_is_known_is_counted_here():
    assert set(TINY) == set(KNOWN)


FUSED = ("llama", "mistral", "gpt2", "qwen2_moe")


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "eager") for kind in TINY), *((kind, "sdpa") for kind in FUSED)]
)
def test_operations_are_those_that_torch_counts(kind, attention):
    model = tiny_model(kind, attention)
    # A prompt of one token and one token more; windows that are entered while writing, and in the prompt.
    for prompt_tokens, completion_tokens in ((1, 1), (4, 5), (9, 4)):
        seen = counted(model, prompt_tokens, completion_tokens)
        assert completion_flops(model.config, prompt_tokens, completion_tokens) == seen


def test_a_tied_head_costs_what_one_of_its_own_does():
    costs = {tied: completion_flops(tiny_model("llama", tie_word_embeddings=tied), 4, 3) for tied in (True, False)}
    assert costs[True] == costs[False]


def test_projections_of_embeddings_are_left_out_where_there_are_none():
    model = tiny_model("opt", word_embed_proj_dim=32)
    assert completion_flops(model, 4, 3) == counted(model, 4, 3)


def test_a_mixture_with_a_dense_layer_and_one_without_experts():
    model = tiny_model("qwen2_moe", mlp_only_layers=[1])
    assert completion_flops(model, 4, 3) == counted(model, 4, 3)
    model = tiny_model("qwen2_moe", num_experts=0)
    assert completion_flops(model, 4, 3) == counted(model, 4, 3)
    model = tiny_model("qwen2_moe", decoder_sparse_step=1)
    assert completion_flops(model, 4, 3) == counted(model, 4, 3)


@pytest.mark.parametrize("window", [None, 50, 3])
def test_a_long_completion_costs_the_sum_of_its_steps(window):
    shape = DecoderShape(active_weights=732, head_weights=6 * 13, layers=(LayerShape(15, window),) * 2)
    total = 2 * (20 * 2 * 366 + 4 * 15 * 400) + 2 * 6 * 13  # the prompt, and the first token
    for step in range(1, 10_000):
        total += 2 * (2 * 366 + 4 * 15 * min(20 + step, window or 10**9)) + 2 * 6 * 13
    assert completion_flops(shape, 20, 10_000) == total


def test_numbers_of_tokens_that_cannot_be():
    shape = decoder_shape(LlamaConfig(**COMMON))
    assert completion_flops(shape, 5, 0) == 0
    with pytest.raises(ValueError, match=r"prompt_tokens is 0; a completion starts from a token"):
        completion_flops(shape, 0, 5)
    with pytest.raises(ValueError, match=r"completion_tokens is -1; it must be 0 or more"):
        completion_flops(shape, 5, -1)


@pytest.mark.parametrize("kind", ["bert", "deepseek_v3", "mamba", "t5", "stablelm"])
def test_a_kind_that_is_not_known_is_refused(kind):
    with pytest.raises(ValueError, match=rf"type '{kind}' computes is not known.*Known are gemma, .*DecoderShape"):
        decoder_shape(AutoConfig.for_model(kind))


def test_what_is_no_config_of_a_decoder_is_refused():
    config = LlamaConfig(**COMMON)
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="Layer 1 is of type 'linear_attention'"):
        decoder_shape(config)
    with pytest.raises(ValueError, match=r"what differs in them \(per_layer_config\): give a DecoderShape"):
        decoder_shape(LlamaConfig(**COMMON, per_layer_config={1: {"intermediate_size": 12}}))
    with pytest.raises(ValueError, match="a folder, a model id, a transformers config or a model with one, not as 7"):
        decoder_shape(7)
    with pytest.raises(FileNotFoundError, match=r"No model at './nowhere'"):
        decoder_shape("./nowhere")


def test_of_a_model_that_reads_images_the_language_model_counts():
    text = AutoConfig.for_model("gemma3_text", **TINY["gemma3_text"])
    config = AutoConfig.for_model("gemma3", text_config=text.to_dict())
    assert decoder_shape(config) == decoder_shape(text)


# --- Parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in KNOWN if kind not in MIXTURES])
def test_parameters_of_a_dense_model_are_all_that_it_has(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_active(model.config) == parameters_active(model) == everything
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("kind", MIXTURES)
def test_parameters_of_a_mixture_are_those_that_a_token_reaches(kind):
    model = tiny_model(kind)
    model(torch.tensor([[5]]), labels=None).logits.sum().backward()
    active = 0
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("experts.gate_up_proj", "experts.down_proj")
        ):  # (experts, ...), a gradient where one is used
            active += sum(expert.numel() for expert in parameter.grad if expert.any())
        else:
            active += parameter.numel()
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert active < everything
    assert parameters_active(model.config) == parameters_active(model) == active


def test_parameters_of_a_folder_are_of_the_model_that_lies_in_it(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    for name, model in {
        "policy": tiny_causal_lm(tiny_tokenizer()),
        "encoder": tiny_classifier(tokenizer, num_labels=3),  # its head is no language model's
        "decoder": tiny_classifier(tiny_tokenizer(), "llama"),
    }.items():
        folder = save_tiny(tmp_path / name, model, tokenizer)
        assert parameters_active(folder) == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_adapters_count_in_a_model_and_not_in_a_folder(tmp_path):
    base = tiny_causal_lm(tiny_tokenizer())
    save_tiny(tmp_path / "base", base, tiny_tokenizer())
    count = parameters_active(base)
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    assert parameters_active(adapted) == count + 2 * (2 * 32 + 2 * 32)  # two layers, two matrices of 2 x 32 each
    adapted.save_pretrained(tmp_path / "adapter")
    assert parameters_active(tmp_path / "adapter") == count
    assert completion_flops(tmp_path / "adapter", 3, 2) == completion_flops(tmp_path / "base", 3, 2)


def test_parameters_of_anything_else():
    assert parameters_active(torch.nn.Linear(3, 4)) == 16
    with pytest.raises(ValueError, match="type 'deepseek_v3' computes is not known"):  # 8 of 256 experts, but which?
        parameters_active(AutoConfig.for_model("deepseek_v3"))
    with pytest.raises(ValueError, match="a config, a folder or a model id, and none was given"):
        parameters_active(None)


# --- Costs as rewards ---------------------------------------------------------------------------


ROWS = {
    "prompts": ["The film", "It was bad, but", "What a"],
    "completions": [" is", " good", ""],
    "completion_ids": [[7, 8], [9], []],
    "prompt_ids": [[5, 6, 7], [3] * 10, [4, 4]],
}


def test_flops_of_each_completion():
    # 4,224 as by hand above; ten tokens of prompt and one of completion; nothing.
    second = 2 * 10 * 432 + 2 * 88 + 4 * 8 * 100
    assert Flops(SMALL, unit=1.0)(**ROWS) == [4224.0, second, 0.0]
    assert Flops(SMALL)(**ROWS) == pytest.approx([4224e-9, second * 1e-9, 0.0])


def test_flops_read_config_model_and_folder_alike(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    folder = save_tiny(tmp_path / "policy", model, tokenizer)
    costs = [Flops(given)(**ROWS) for given in (folder, str(folder), model.config, model)]
    assert costs == [costs[0]] * 4
    assert Flops(model).model is model.config  # weights do not go into pickles


def test_flops_count_prompts_themselves_where_the_trainer_gives_no_ids(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=True)
    folder = save_tiny(tmp_path / "policy", tiny_causal_lm(tokenizer), tokenizer)
    rows = {key: value for key, value in ROWS.items() if key != "prompt_ids"}
    ids = [tokenizer(prompt).input_ids for prompt in rows["prompts"]]
    assert Flops(folder)(**rows) == Flops(folder)(**rows, prompt_ids=ids)
    chat = [[{"role": "user", "content": prompt}] for prompt in rows["prompts"]]
    ids = [tokenizer(f"<|user|>{prompt}<|assistant|>").input_ids for prompt in rows["prompts"]]
    assert Flops(folder)(**rows | {"prompts": chat}) == Flops(folder)(**rows, prompt_ids=ids)
    assert Flops(SMALL, tokenizer=tokenizer)(**rows) == Flops(SMALL, tokenizer=folder)(**rows)
    assert Flops(folder)(prompts=[], completions=[], completion_ids=[]) == []
    with pytest.raises(ValueError, match="Flops counts the tokens of prompts, but the trainer gives no prompt_ids"):
        Flops(SMALL)(**rows)


def test_flops_of_an_empty_prompt_are_those_of_its_start_token():
    one, none = ({**ROWS, "prompt_ids": [ids] * 3} for ids in ([1], []))
    assert Flops(SMALL)(**one) == Flops(SMALL)(**none)


def test_flops_of_10000_tokens():
    row = {"prompts": [""], "completions": ["x"], "completion_ids": [[1] * 10_000], "prompt_ids": [[1]]}
    looked_at = 10_000 * 10_001 // 2
    assert Flops(SMALL, unit=1.0)(**row) == [2 * 10_000 * (432 + 88) + 4 * 8 * looked_at]


def test_token_count():
    assert TokenCount()(**ROWS) == [2.0, 1.0, 0.0]
    assert TokenCount(include_prompt=True)(**ROWS) == [5.0, 11.0, 2.0]
    rows = {key: value for key, value in ROWS.items() if key != "prompt_ids"}
    tokenizer = tiny_tokenizer()
    lengths = [len(tokenizer(prompt).input_ids) for prompt in rows["prompts"]]
    counted_here = TokenCount(include_prompt=True, tokenizer=tokenizer)(**rows)
    assert counted_here == [lengths[0] + 2, lengths[1] + 1, lengths[2]]
    with pytest.raises(ValueError, match="TokenCount counts tokens and needs completion_ids"):
        TokenCount()(completions=["a"])


def test_who_is_given_prompt_ids():
    assert Flops(SMALL).wants_prompt_ids
    assert TokenCount(include_prompt=True).wants_prompt_ids
    assert not TokenCount().wants_prompt_ids


def test_active_parameters_are_the_same_for_all():
    model = tiny_causal_lm(tiny_tokenizer())
    everything = sum(parameter.numel() for parameter in model.parameters())
    reward = ActiveParameters(model, unit=1e3)
    assert reward(**ROWS) == [everything / 1e3] * 3
    assert ActiveParameters(model.config)(**ROWS) == pytest.approx([everything / 1e9] * 3)
    assert reward.constant
    assert not getattr(Flops(SMALL), "constant", False)


def test_units_that_cannot_be():
    for make in (Flops, ActiveParameters):
        with pytest.raises(ValueError, match=rf"unit of {make.__name__} is 0; it must be a number above 0"):
            make(LlamaConfig(**COMMON), unit=0)


# --- Discount -----------------------------------------------------------------------------------


def length(completion_ids, **kwargs):
    return [None if ids == [0] else len(ids) for ids in completion_ids]


def discounted(shape, *lengths, scale=4.0):
    ids = [[1] * count for count in lengths]
    return Discount(length, scale, shape)(prompts=ids, completions=ids, completion_ids=ids)


def test_each_shape_falls_from_1():
    e = 2.718281828459045
    assert discounted("exponential", 0, 4, 8) == pytest.approx([1.0, 1 / e, 1 / e**2])
    assert discounted("hyperbolic", 0, 4, 12) == pytest.approx([1.0, 0.5, 0.25])
    assert discounted("linear", 0, 1, 4, 5) == pytest.approx([1.0, 0.75, 0.0, 0.0])
    assert discounted("step", 0, 3, 4, 5) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", ["exponential", "hyperbolic", "linear", "step"])
def test_a_discount_never_leaves_0_to_1_and_never_rises(shape):
    values = discounted(shape, *range(0, 200, 7), 100_000)
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert all(0.0 <= value <= 1.0 for value in values)


def test_a_discount_does_not_apply_where_its_cost_does_not():
    rows = {"prompts": ["", ""], "completions": ["a", "b"], "completion_ids": [[0], [1]]}
    assert Discount(length, 1.0)(**rows) == pytest.approx([None, math.exp(-1)])


@pytest.mark.parametrize(
    "cost",
    [
        TokenCount(),
        TokenCount,
        "rlhf_recipes.rewards.compute.TokenCount",
        {"func": "rlhf_recipes.rewards.compute:TokenCount", "args": {"include_prompt": False}},
        {"func": length, "name": "tokens"},
    ],
)
def test_the_cost_is_a_reward_or_what_a_file_says_of_one(cost):
    assert Discount(cost, 2.0, "hyperbolic")(**ROWS) == pytest.approx([1 / 2, 2 / 3, 1.0])


def test_a_discount_out_of_a_file():
    args = {"cost": {"func": "rlhf_recipes.rewards.compute.TokenCount"}, "scale": 2.0, "shape": "linear"}
    reward = load_reward("rlhf_recipes.rewards.combine.compose.Discount", name="short", args=args)
    assert reward.__name__ == "short"
    assert reward(**ROWS) == [0.0, 0.5, 1.0]


def test_a_discount_asks_for_what_its_cost_asks_for():
    reward = WeightedSum([Discount(Flops(SMALL, unit=1.0), 4224.0)])
    assert reward.parts(**ROWS)["Discount"][0] == pytest.approx(math.exp(-1))
    assert Discount(Flops(SMALL), 1.0).wants_prompt_ids
    assert not Discount(TokenCount(), 1.0).wants_prompt_ids
    assert Discount(ActiveParameters(LlamaConfig(**COMMON)), 1.0).constant
    assert not Discount(TokenCount(), 1.0).constant

    def surprise(completion_ids, ref_logprobs, **kwargs):
        return [-sum(values) for values in ref_logprobs]

    surprise.wants_ref_logprobs = True
    assert Discount(surprise, 1.0).wants_ref_logprobs
    values = Discount(surprise, 1.0)(**ROWS, ref_logprobs=[[-0.5, -0.5], [0.0], []])
    assert values == pytest.approx([math.exp(-1), 1.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": 0.0}, "scale of Discount is 0.0; it must be a number above 0"),
        ({"scale": -1}, "scale of Discount is -1"),
        ({"scale": math.inf}, "scale of Discount is inf"),
        ({"scale": True}, "scale of Discount is True"),
        ({"shape": "cubic"}, "shape of Discount is 'cubic'; it must be one of exponential, hyperbolic, linear, step"),
        ({"cost": {"func": "TokenCount", "weight": 2}}, "What describes the cost of Discount has weight"),
        ({"cost": {"args": {}}}, "says no func, which is what names it"),
        ({"cost": "TokenCuont"}, "There is no reward 'TokenCuont'"),
    ],
)
def test_discounts_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Discount(**{"cost": length, "scale": 1.0, **settings})


def test_a_cost_is_one_number_of_0_or_more():
    def steps(completion_ids, **kwargs):
        return [[1.0] * len(ids) for ids in completion_ids]

    steps.per_token = True
    with pytest.raises(ValueError, match="'steps' gives one number for each token, but the cost of Discount must"):
        Discount(steps, 1.0)
    with pytest.raises(ValueError, match="The cost 'saved' of Discount is -3 for row 1, but a cost is 0 or more"):
        Discount({"func": lambda completions, **kwargs: [0, -3], "name": "saved"}, 1.0)(
            prompts=["", ""], completions=["a", "b"], completion_ids=[[1], [2]]
        )
    with pytest.raises(RewardError, match="Reward 'broken' returned nan, for row 0"):
        Discount({"func": lambda completions, **kwargs: [math.nan], "name": "broken"}, 1.0)(
            prompts=[""], completions=["a"], completion_ids=[[1]]
        )


# --- All of them --------------------------------------------------------------------------------

ALL = [
    Flops(SMALL, unit=1e3),
    TokenCount(),
    TokenCount(include_prompt=True, name="all_tokens"),
    ActiveParameters(LlamaConfig(**COMMON), unit=1e3),
    Discount(TokenCount(), 2.0),
    Discount(Flops(SMALL, unit=1e3), 5.0, "hyperbolic", name="cheap"),
]


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_a_value_is_of_its_own_row_and_survives_pickling(reward):
    values = reward(**ROWS)
    assert pickle.loads(pickle.dumps(reward))(**ROWS) == values
    for row, value in enumerate(values):
        assert reward(**{key: column[row : row + 1] for key, column in ROWS.items()}) == [value]
    assert all(isinstance(value, float) and value >= 0 for value in values)


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_what_a_text_says_plays_no_part(reward):
    odd = {"prompts": ["...", "", "静かな 👍"], "completions": ["", "?!", "\x00 مرحبا"]}
    assert reward(**ROWS | odd) == reward(**ROWS)


def test_a_penalty_is_a_negative_weight():
    reward = WeightedSum(
        [length, TokenCount(), TokenCount(include_prompt=True, name="all")], weights=[1.0, -0.5, -0.1]
    )
    assert reward(**ROWS) == pytest.approx([2 - 1 - 0.5, 1 - 0.5 - 1.1, -0.2])


def test_a_run_is_told_what_its_completions_cost(tmp_path):
    policy = tiny_policy()
    run = trainer(
        tmp_path,
        policy,
        reward=WeightedSum(
            [many_short_tokens, Flops(policy, unit=1e6), Discount(TokenCount(), 6.0, "linear")], [1.0, -0.1, 0.5]
        ),
        total_episodes=8,
        stop_token_id=list(range(5, 400, 9)),
    )
    run.train()
    (logged,) = [entry for entry in run.state.log_history if "objective/scores" in entry]
    before, after = (mask.sum(dim=1).tolist() for mask in (run.rollout.prompt_mask, run.rollout.mask))
    assert len(set(before)) > 1
    assert len(set(after)) > 1
    costs = [completion_flops(policy.config, *lengths) / 1e6 for lengths in zip(before, after, strict=True)]
    assert logged["reward/Flops"] == pytest.approx(sum(costs) / 8)
    factors = [1 - length / 6 for length in after]
    assert logged["reward/Discount"] == pytest.approx(sum(factors) / 8)
    total = logged["reward/many_short_tokens"] - 0.1 * sum(costs) / 8 + 0.5 * sum(factors) / 8
    assert logged["objective/scores"] == pytest.approx(total)
