"""What is measured of completions, against figures worked out by hand; and that how it is measured changes nothing."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.ppo.run.held_out import move_to_best_device, summarize, write_completions
from rlhf_recipes.rewards import RewardError, WeightedSum
from rlhf_recipes.statistics import paired_gain
from rlhf_recipes.words import distinct_n
from tests.tiny import keep_the_wrong_logits, tiny_causal_lm, tiny_tokenizer

# ---- distinct-n


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b a b"], 1, 2 / 4),  # a, b
        (["a b a b"], 2, 2 / 3),  # "a b" twice, "b a" once
        (["a b c"], 2, 1.0),
        (["a b c"], 3, 1.0),
        (["a b", "a b"], 2, 1 / 2),  # over all texts together, not the mean of two 1.0
        (["a b", "c d"], 2, 1.0),  # two bigrams: "b c" would be a third, and stands in no text
        (["a", "b"], 2, 0.0),  # joined they would have one
        (["The film", "the  film\n"], 1, 2 / 4),  # case and white space do not count
        (["good.", "good"], 1, 1.0),  # punctuation does: words are split on spaces alone
        (["one"], 1, 1.0),
        (["one"], 2, 0.0),
        (["", " \n"], 1, 0.0),
        ([], 1, 0.0),
    ],
)
def test_distinct_n_is_different_ngrams_over_all_ngrams(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected, abs=1e-12)


# ---- the gain between two measurements


def test_the_interval_of_a_constant_difference_has_no_width():
    gain = paired_gain([-1.0, 0.0, 2.5, 0.5], [-0.25, 0.75, 3.25, 1.25])
    assert gain == {"gain": 0.75, "gain_ci95": [0.75, 0.75]}


def test_pairs_are_resampled_and_not_each_side_alone():
    # Scores far apart from each other, gains all the same: unpaired resampling would have an interval of about ±80.
    before = [-100.0, 100.0, -50.0, 50.0]
    assert paired_gain(before, [x + 1 for x in before])["gain_ci95"] == [1.0, 1.0]


def test_two_prompts_say_little_and_one_nothing():
    # The standard error of 0 and 1 is 1/2, and Student's t of one degree of freedom 12.706.
    gain = paired_gain([0.0, 0.0], [0.0, 1.0])
    assert gain == {"gain": 0.5, "gain_ci95": pytest.approx([0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2], abs=1e-3)}
    assert paired_gain([1.0], [3.0]) == {"gain": 2.0, "gain_ci95": None}


def test_of_many_prompts_it_is_the_normal_interval():
    # Half of the differences are 0 and half are 2: mean 1, standard deviation 1, standard error 1 / sqrt(400).
    gain = paired_gain([0.0] * 400, [0.0, 2.0] * 200)
    assert gain["gain"] == 1.0
    assert gain["gain_ci95"] == pytest.approx([1 - 1.96 / 20, 1 + 1.96 / 20], abs=0.006)


def test_the_gain_has_the_sign_of_after_minus_before():
    before, after = [3.0, 1.0, 2.0], [1.0, 0.0, 2.0]
    assert paired_gain(before, after)["gain"] == -1.0


@pytest.mark.parametrize(("before", "after"), [([1.0, 2.0], [1.0]), ([], [])])
def test_lists_that_do_not_pair_are_refused(before, after):
    with pytest.raises(ValueError, match=f"{len(before)} scores before and {len(after)} after"):
        paired_gain(before, after)


# ---- the summary


def row(completion, score, kl, tokens, finished, **scores):
    return {
        "prompt": "It is",
        "completion": completion,
        "finished": finished,
        "tokens": tokens,
        "kl": kl,
        "score": score,
        "scores": scores,
    }


def test_a_summary_by_hand():
    rows = [
        row("good good", 3.0, 1.5, 3, True, film=2.0, rule=1.0),
        row("good film", -1.0, 0.5, 5, False, film=-1.0, rule=None),
    ]
    assert summarize(rows) == {
        "prompts": 2,
        "score": 1.0,
        "kl": 1.0,
        "completion_length": 4.0,
        "finished": 0.5,
        "distinct_1": 2 / 4,
        "distinct_2": 2 / 2,
        "reward/film": 0.5,
        "reward/rule": 1.0,  # over the one row to which it applies
    }


def test_a_reward_that_applies_to_no_row_has_no_figure():
    figures = summarize([row("a b", 1.0, 0.0, 2, True, film=1.0, rule=None)])
    assert "reward/rule" not in figures
    assert all(math.isfinite(value) for value in figures.values())  # JSON has no NaN


# ---- completions


PROMPTS = [
    "The film",
    "A dull script and a tired cast",
    "It was",
    "Nobody could save",
    "What a wonderful little",
    "yes",
]


def letters(completions, **kwargs):
    return [float(len(text)) for text in completions]


def echo(completions, tag, **kwargs):
    return [float(number) for number in tag]


REWARD = WeightedSum([letters, echo], weights=[0.5, 10.0])


def measure(roles, tokenizer, prompts=PROMPTS, reward=REWARD, **options):
    data = Dataset.from_dict({"prompt": prompts, "tag": list(range(len(prompts)))})
    settings = {"max_prompt_length": 64, "max_completion_length": 8} | options
    return list(write_completions(roles, tokenizer, data, reward, **settings))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(padding_side="left", chat_template=True)


@pytest.fixture(scope="module")
def roles(tokenizer):
    """A policy, and another model as its reference."""
    return ActorCritic(tiny_causal_lm(tokenizer, seed=1), tiny_causal_lm(tokenizer, seed=2)).eval()


def test_rows_come_in_the_order_of_the_dataset_with_their_columns_and_weighted_scores(roles, tokenizer):
    rows = measure(roles, tokenizer, batch_size=4)
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["scores"]["echo"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows:
        assert row["scores"]["letters"] == len(row["completion"])
        assert row["score"] == 0.5 * row["scores"]["letters"] + 10 * row["scores"]["echo"]
        assert 1 <= row["tokens"] <= 8
        assert row["finished"] or row["tokens"] == 8


def test_a_reference_that_keeps_the_wrong_logits_is_asked_for_all(roles, tokenizer, caplog):
    expected = [row["kl"] for row in measure(roles, tokenizer)]
    wrong = ActorCritic(roles.policy, keep_the_wrong_logits(tiny_causal_lm(tokenizer, seed=2))).eval()
    assert [row["kl"] for row in measure(wrong, tokenizer)] == pytest.approx(expected, abs=1e-3)
    assert "Kept logits: put aside for reference (LlamaForCausalLM), because" in caplog.text


def test_the_batch_size_changes_nothing(roles, tokenizer):
    whole = measure(roles, tokenizer, batch_size=64)
    for size in (1, 4):
        parts = measure(roles, tokenizer, batch_size=size)
        assert [row["completion"] for row in parts] == [row["completion"] for row in whole]
        assert [row["score"] for row in parts] == [row["score"] for row in whole]
        assert [row["kl"] for row in parts] == pytest.approx([row["kl"] for row in whole], abs=2e-4)
    assert any(abs(row["kl"]) > 0.01 for row in whole)


def test_another_seed_is_other_luck_and_the_same_seed_the_same(roles, tokenizer):
    texts = [[row["completion"] for row in measure(roles, tokenizer, seed=seed)] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_kl_is_the_difference_of_the_log_probabilities_of_what_was_written(tokenizer):
    """Once by hand, for one prompt and no padding: log p(completion | prompt) under the one and the other."""
    policy, reference = tiny_causal_lm(tokenizer, seed=1), tiny_causal_lm(tokenizer, seed=2)
    seen = []

    def spy(completions, completion_ids, **kwargs):
        seen.extend(completion_ids)
        return [0.0] * len(completions)

    rows = measure(ActorCritic(policy, reference).eval(), tokenizer, ["The film"], WeightedSum([spy]), temperature=0.7)
    prompt = tokenizer("The film")["input_ids"]
    with torch.no_grad():
        log_p, log_q = (
            sum(
                torch.log_softmax(model(torch.tensor([prompt + seen[0][:t]])).logits[0, -1] / 0.7, -1)[token].item()
                for t, token in enumerate(seen[0])
            )
            for model in (policy, reference)
        )
    assert rows[0]["tokens"] == len(seen[0])
    assert rows[0]["kl"] == pytest.approx(log_p - log_q, abs=2e-4)


def test_kl_of_a_policy_to_itself_is_0(tokenizer):
    policy = tiny_causal_lm(tokenizer, seed=1)
    for roles in (
        ActorCritic(policy, reference_is_base=True),
        ActorCritic(policy, tiny_causal_lm(tokenizer, seed=1)),
        ActorCritic(get_peft_model(policy, LoraConfig(target_modules=["q_proj"])), reference_is_base=True),
    ):
        assert [row["kl"] for row in measure(roles.eval(), tokenizer)] == [0.0] * len(PROMPTS)


def test_trained_adapters_are_measured_against_the_base_below_them(tokenizer):
    policy = get_peft_model(tiny_causal_lm(tokenizer, seed=1), LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    by_adapter_off = measure(ActorCritic(policy, reference_is_base=True).eval(), tokenizer)
    by_copy = measure(ActorCritic(policy, tiny_causal_lm(tokenizer, seed=1)).eval(), tokenizer)
    assert [row["kl"] for row in by_adapter_off] == pytest.approx([row["kl"] for row in by_copy], abs=2e-4)
    assert any(abs(row["kl"]) > 0.01 for row in by_copy)


def test_conversations_reach_rewards_as_messages(roles, tokenizer):
    seen = {}

    def spy(prompts, completions, **kwargs):
        seen.update(prompts=prompts, completions=completions)
        return [1.0] * len(completions)

    talks = [[{"role": "user", "content": f"Question {number}"}] for number in range(2)]
    rows = measure(roles, tokenizer, talks, WeightedSum([spy]))
    assert seen["prompts"] == talks
    assert seen["completions"] == [[{"role": "assistant", "content": row["completion"]}] for row in rows]
    assert [row["prompt"] for row in rows] == talks


def test_a_per_token_reward_is_shown_as_its_sum_and_a_potential_not_at_all(roles, tokenizer):
    def halves(completion_ids, **kwargs):
        return [[0.5] * len(ids) for ids in completion_ids]

    def progress(completion_ids, **kwargs):
        return [[100.0] * len(ids) for ids in completion_ids]

    halves.per_token = progress.per_token = progress.potential = True
    rows = measure(roles, tokenizer, reward=WeightedSum([echo, halves, progress], weights=[10.0, 4.0, 1.0]))
    for number, row in enumerate(rows):
        assert row["scores"] == {"echo": number, "halves": row["tokens"] / 2}
        assert row["score"] == 10 * number + 2 * row["tokens"]


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_sampled(tokenizer):
    roles = ActorCritic(tiny_causal_lm(tokenizer, max_position_embeddings=16), reference_is_base=True)
    with pytest.raises(ValueError, match=r"longest prompt has \d+ tokens.* max_completion_length 8 .*the 16 tokens"):
        measure(roles, tokenizer, ["The film is a quiet, funny and moving story about two brothers."])
    # Cut to what fits, it goes through.
    assert len(measure(roles, tokenizer, PROMPTS[:2], max_prompt_length=4)) == 2


def test_a_reward_that_raises_is_named(roles, tokenizer):
    def broken(completions, **kwargs):
        raise KeyError("stars")

    with pytest.raises(RewardError, match="Reward 'broken' raised KeyError: 'stars'"):
        measure(roles, tokenizer, reward=WeightedSum([broken]))


def test_all_roles_move_to_the_device_together(roles):
    assert move_to_best_device(roles) is roles
    devices = {parameter.device.type for model in (roles, roles.ref_model) for parameter in model.parameters()}
    assert len(devices) == 1
