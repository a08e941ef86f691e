"""What goes in and how completions are drawn: each form of a prompt, and each option of sampling against its rule."""

import copy
import logging

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, default_data_collator

from rlhf_recipes.data.prompts import encode_prompts
from rlhf_recipes.modeling.generation import (
    LocalGenerator,
    completion_mask,
    sampling_config,
    stable_key,
    warn_of_distortions,
)
from rlhf_recipes.ppo import PPOConfig
from tests.ppo.helpers import (
    DATA,
    OPENINGS,
    TOKENIZER,
    largest_difference,
    logged,
    many_short_tokens,
    tiny_policy,
    trainer,
    weights,
)
from tests.tiny import tiny_causal_lm, tiny_tokenizer

CHATTY = tiny_tokenizer(chat_template=True)
ONE_STEP = {"total_episodes": 8, "num_ppo_epochs": 1, "num_mini_batches": 1}
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def token(text):
    (single,) = TOKENIZER(text)["input_ids"]
    return single


def chain_policy(follows, otherwise=EOS):
    """A policy without chance: after token a comes `follows[a]`, and after any other token `otherwise`.

    Layers that add nothing leave the embedding, one axis for each token; the head points from each axis to the next
    token. Logits are 20 there and 0 elsewhere, so that another token comes once in a million draws.
    """
    size = len(TOKENIZER)
    policy = tiny_causal_lm(TOKENIZER, num_layers=1, hidden_size=size)
    with torch.no_grad():
        policy.model.layers[0].self_attn.o_proj.weight.zero_()
        policy.model.layers[0].mlp.down_proj.weight.zero_()
        policy.model.embed_tokens.weight.copy_(torch.eye(size))
        policy.lm_head.weight.zero_()
        for before in range(size):
            policy.lm_head.weight[follows.get(before, otherwise), before] = 1.0
    return policy


def write(policy, prompts, keys=None, length=8, temperature=1.0, stop_token=None, stop_token_id=None, **options):
    """Completions as lists without padding, and which ended by themselves."""
    config = sampling_config(TOKENIZER, policy, length, temperature, stop_token, stop_token_id, **options)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    keys = [stable_key("write", row) for row in range(len(prompts))] if keys is None else keys
    written = LocalGenerator(policy, TOKENIZER).generate(ids, mask, config, keys).completion_ids
    real, finished = completion_mask(written, config.eos_token_id, config.stop_strings, TOKENIZER)
    rows = [row[:n] for row, n in zip(written.tolist(), real.sum(dim=1).tolist(), strict=True)]
    return rows, finished.tolist()


# --- Prompts in every form ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_text(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("text"), data=Dataset.from_dict({"prompt": OPENINGS}), **ONE_STEP)
    run.train()
    return run


def ids_of_openings():
    return [TOKENIZER(text)["input_ids"] for text in OPENINGS]


def padded_left(rows, width=9):
    return {
        "input_ids": [[PAD] * (width - len(row)) + row for row in rows],
        "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
    }


@pytest.mark.parametrize("form", ["ids", "ids and mask", "padded, mask", "padded", "tensors"])
def test_a_prompt_as_text_and_as_ids_gives_the_same_run(tmp_path, of_text, form):
    plain, padded = {"input_ids": ids_of_openings()}, padded_left(ids_of_openings())
    columns = {
        "ids": plain,
        "ids and mask": plain | {"attention_mask": [[1] * len(row) for row in plain["input_ids"]]},
        "padded, mask": padded,
        "padded": {"input_ids": padded["input_ids"]},
        "tensors": padded,
    }[form]
    data = Dataset.from_dict(columns)
    run = trainer(tmp_path, data=data.with_format("torch") if form == "tensors" else data, **ONE_STEP)
    assert run.prompts["train"].ids == ids_of_openings()
    assert run.prompts["train"].dataset["prompt"][:] == OPENINGS  # what rewards read
    run.train()
    assert largest_difference(weights(run), weights(of_text)) == 0


def test_messages_with_a_system_prompt_give_the_run_of_their_rendered_text(tmp_path):
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}, *more]
        for text, more in zip(OPENINGS, [[]] * 7 + [[{"role": "assistant", "content": "yes"},
                                                     {"role": "user", "content": "no"}]], strict=True)
    ]  # fmt: skip
    texts = [f"<|system|>Be brief.<|user|>{text}<|assistant|>" for text in OPENINGS]
    texts[7] = "<|system|>Be brief.<|user|>two<|assistant|>yes<eos><|user|>no<|assistant|>"
    runs = [
        trainer(tmp_path / str(n), tokenizer=CHATTY, data=Dataset.from_dict({"prompt": prompts}), **ONE_STEP)
        for n, prompts in enumerate([chats, texts])
    ]
    assert runs[0].prompts["train"].ids == runs[1].prompts["train"].ids
    for run in runs:
        run.train()
    assert largest_difference(*map(weights, runs)) == 0


def test_a_pad_token_inside_a_prompt_is_the_users():
    data = Dataset.from_dict({"input_ids": [[PAD, PAD, 7, PAD, 8, PAD]]})
    assert encode_prompts(data, TOKENIZER, 99).ids == [[7, PAD, 8]]


def test_plain_prompts_have_no_use_for_tools():
    data = Dataset.from_dict({"prompt": ["The film"], "tools": ["a hammer"]})
    assert encode_prompts(data, TOKENIZER, 99).ids == [TOKENIZER("The film")["input_ids"]]


@pytest.mark.parametrize("name", ["completions", "prompt_ids", "trainer_state"])
def test_a_column_with_the_name_of_what_rewards_are_given_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match=f"column '{name}' has the name of what every reward is given; rename it"):
        trainer(tmp_path, data=DATA.add_column(name, ["x"] * 16))


def test_overlong_prompts_are_cut_or_dropped_counted_and_stay_with_their_columns(tmp_path, caplog):
    lengths = [len(TOKENIZER(text)["input_ids"]) for text in DATA["prompt"]]
    too_long = sum(length > 3 for length in lengths)
    assert 0 < too_long < 8
    seen = []

    def spy(prompts, completion_ids, number, prompt_ids, **kwargs):
        seen.extend(zip(number, prompts, prompt_ids, strict=True))
        return many_short_tokens(completion_ids)

    spy.wants_prompt_ids = True
    run = trainer(tmp_path / "drop", reward=spy, max_prompt_length=3, overlong_prompts="drop", **ONE_STEP)
    assert f"{too_long} of 16 prompts are longer than max_prompt_length 3 tokens and are left out" in caplog.text
    run.train()
    assert {number for number, *_ in seen} <= {row for row in range(16) if lengths[row] <= 3}
    for number, prompt, ids in seen:
        assert prompt == DATA[number]["prompt"]
        assert ids == TOKENIZER(prompt)["input_ids"]

    seen.clear()
    trainer(tmp_path / "cut", reward=spy, max_prompt_length=3, **(ONE_STEP | {"total_episodes": 16})).train()
    assert (
        f"{too_long} of 16 prompts are longer than max_prompt_length 3 tokens and lose their beginning" in caplog.text
    )
    assert sorted(number for number, *_ in seen) == list(range(16))
    assert all(ids == TOKENIZER(DATA[number]["prompt"])["input_ids"][-3:] for number, _, ids in seen)


def test_dropping_all_is_an_error_with_both_ways_out():
    with pytest.raises(ValueError, match=r"All 16 prompts are longer.*1 tokens.*'drop'\. Raise .* or give .*'cut'"):
        encode_prompts(DATA.map(lambda row: {"prompt": row["prompt"] + " good good"}), TOKENIZER, 1, "drop")


@pytest.mark.parametrize(
    "collator",
    [
        DataCollatorWithPadding(TOKENIZER),
        DataCollatorWithPadding(TOKENIZER, pad_to_multiple_of=8),
        default_data_collator,
    ],
    ids=["padding", "padding to 8", "a function"],
)
def test_a_collator_of_transformers_changes_nothing(tmp_path, collator):
    run = trainer(tmp_path, data_collator=collator)
    assert run.prompts["train"].ids == ids_of_openings() * 2


def test_a_collator_of_ones_own_sees_the_columns_and_has_the_last_word(tmp_path):
    def collator(rows):
        (row,) = rows
        ids = [EOS] * (row["number"] % 2) + row["input_ids"]
        return {"input_ids": torch.tensor([[PAD, *ids]]), "attention_mask": torch.tensor([[0] + [1] * len(ids)])}

    run = trainer(tmp_path, data_collator=collator)
    assert run.prompts["train"].ids == [[EOS] * (n % 2) + ids for n, ids in enumerate(ids_of_openings() * 2)]


# --- Several completions of a prompt ------------------------------------------------------------


def test_siblings_stand_side_by_side_and_differ_and_every_prompt_comes_once_in_a_pass(tmp_path):
    batches = []

    def spy(prompts, completion_ids, number, **kwargs):
        batches.append((number, prompts, completion_ids))
        return many_short_tokens(completion_ids)

    run = trainer(tmp_path, reward=spy, num_generations=4, total_episodes=None, num_train_epochs=2,
                  num_ppo_epochs=1, num_mini_batches=1)  # fmt: skip
    assert run.sizes.iterations == 2 * 16 * 4 // 8
    run.train()
    assert len(batches) == 16
    for number, prompts, completions in batches:
        for start in (0, 4):
            family = slice(start, start + 4)
            assert len(set(number[family])) == len(set(prompts[family])) == 1
            assert len({tuple(ids) for ids in completions[family]}) > 1
    passes = [[number for row in batches[i : i + 8] for number in row[0][::4]] for i in (0, 8)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(16))
    assert passes[0] != passes[1]


def test_num_generations_that_does_not_divide_is_refused_with_what_would_fit():
    with pytest.raises(ValueError, match="8 episodes on each.*num_generations 3.*for example.*num_generations 1"):
        PPOConfig(output_dir="x", use_cpu=True, per_device_train_batch_size=8, num_generations=3)


# --- Each option of sampling, against its rule --------------------------------------------------

DRAWS = 1500
KEYS = [stable_key("draws", row) for row in range(DRAWS)]
PROMPT = TOKENIZER("The film is a quiet film")["input_ids"]


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def logits(policy):
    with torch.no_grad():
        return policy(torch.tensor([PROMPT])).logits[0, -1]


def assert_drawn_from(tokens, p):
    """Nothing outside the distribution, and the count of each likely token within 4.5 standard deviations."""
    counts = torch.bincount(tokens, minlength=len(p)).double()
    n, p = len(tokens), p.double()
    assert counts[p == 0].sum() == 0
    often = n * p >= 15
    p = torch.cat([p[often], p[~often].sum()[None]])
    counts = torch.cat([counts[often], counts[~often].sum()[None]])
    assert ((counts - n * p).abs() <= 4.5 * (n * p * (1 - p)).sqrt() + 1e-6).all()


def renormalized(p, kept):
    cut = torch.where(kept, p, 0.0)
    return cut / cut.sum()


def of_top_k(p, k):
    kept = torch.zeros_like(p, dtype=torch.bool)
    kept[p.argsort(descending=True)[:k]] = True
    return renormalized(p, kept)


def of_top_p(p, mass):
    """The likeliest tokens until their sum reaches the mass, the one that reaches it included."""
    kept, total = torch.zeros_like(p, dtype=torch.bool), 0.0
    for index in p.argsort(descending=True).tolist():
        if total >= mass:
            break
        kept[index] = True
        total += float(p[index])
    return renormalized(p, kept)


def of_penalty(logits, penalty, temperature):
    """CTRL's (arXiv 1909.05858): the logits of tokens that were there are divided if positive, else multiplied."""
    changed = logits.clone()
    for index in set(PROMPT):
        changed[index] = logits[index] / penalty if logits[index] > 0 else logits[index] * penalty
    return torch.softmax(changed / temperature, dim=0)


TRUNCATED = {
    "all": ({}, lambda logits, p: p),
    "top_k": ({"top_k": 5}, lambda logits, p: of_top_k(p, 5)),
    "top_p": ({"top_p": 0.6}, lambda logits, p: of_top_p(p, 0.6)),
    "min_p": ({"min_p": 0.2}, lambda logits, p: renormalized(p, p >= 0.2 * p.max())),
    "top_k and top_p": ({"top_k": 20, "top_p": 0.5}, lambda logits, p: of_top_p(of_top_k(p, 20), 0.5)),
    "repetition_penalty": ({"repetition_penalty": 3.0}, lambda logits, p: of_penalty(logits, 3.0, 0.7)),
    "nothing": ({"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}, lambda logits, p: p),
}


@pytest.mark.parametrize("case", TRUNCATED)
def test_draws_follow_the_exact_truncated_distribution(policy, logits, case):
    options, expected = TRUNCATED[case]
    p = torch.softmax(logits / 0.7, dim=0)  # truncation comes after temperature
    config = sampling_config(TOKENIZER, policy, 1, 0.7, **options)
    ids = torch.tensor([PROMPT]).expand(DRAWS, -1)
    drawn = LocalGenerator(policy).generate(ids, torch.ones_like(ids), config, KEYS).completion_ids[:, 0]
    assert_drawn_from(drawn, expected(logits, p))
    assert (p > 0).sum() > 300  # so that truncation has something to take away


def test_top_h_leaves_fewer_tokens(policy):
    ids = torch.tensor([PROMPT]).expand(300, -1)

    def different(**options):
        config = sampling_config(TOKENIZER, policy, 1, 1.0, **options)
        written = LocalGenerator(policy).generate(ids, torch.ones_like(ids), config, KEYS[:300])
        return len(written.completion_ids.unique())

    assert different(top_h=0.1) < different() / 2


def test_top_k_1_is_the_argmax_whatever_the_key(policy):
    (one,), _ = write(policy, [PROMPT], keys=[1], top_k=1)
    (other,), _ = write(policy, [PROMPT], keys=[2], top_k=1)
    expected = list(PROMPT)
    for _ in one:
        with torch.no_grad():
            expected.append(int(policy(torch.tensor([expected])).logits[0, -1].argmax()))
    assert one == other == expected[len(PROMPT) :]


def test_a_repetition_penalty_does_not_see_the_padding():
    pads = chain_policy({}, otherwise=PAD)  # a policy that writes the pad token, as any may
    short, long = TOKENIZER("two")["input_ids"], TOKENIZER("a quiet, funny story")["input_ids"]
    alone, _ = write(pads, [short], length=1, repetition_penalty=1e6)
    beside, _ = write(pads, [short, long], length=1, repetition_penalty=1e6)
    assert alone[0] == beside[0] == [PAD]


def test_min_new_tokens_forbids_every_end_until_then():
    ends = chain_policy({})  # the end comes at once
    assert write(ends, [PROMPT]) == ([[EOS]], [True])
    (completion,), (finished,) = write(ends, [PROMPT], min_new_tokens=3)
    assert len(completion) == 4
    assert completion.index(EOS) == 3
    assert finished
    second = token(" film"[:4])  # any other token, named as an end too
    (completion,), _ = write(chain_policy({}, otherwise=second), [PROMPT], min_new_tokens=3, stop_token_id=[second])
    assert not {EOS, second} & set(completion[:3])


FILM = [token(t) for t in ("Th", "e", " fil", "m", " is", " a", " quiet")]
TELLS = dict(zip(FILM, FILM[1:], strict=False))  # "The film is a quiet", and then the end


def test_any_of_several_stop_tokens_ends_and_stays():
    tells = chain_policy(TELLS)
    assert write(tells, [FILM[:1]]) == ([[*FILM[1:], EOS]], [True])
    assert write(tells, [FILM[:1], FILM[:5]], stop_token_id=[FILM[4], FILM[6]]) == (
        [FILM[1:5], FILM[5:7]],
        [True, True],
    )


def test_with_stop_token_none_only_what_is_named_ends():
    ends = chain_policy({EOS: FILM[0], **TELLS})
    (completion,), (finished,) = write(ends, [FILM[:1]], stop_token="none", length=10)
    assert completion == [*FILM[1:], EOS, *FILM[:3]]
    assert not finished
    assert write(ends, [FILM[:1]], stop_token="none", stop_token_id=[FILM[2]], length=10) == ([FILM[1:3]], [True])


def test_a_stop_string_over_two_tokens_ends_each_row_of_a_batch_where_it_is_complete():
    tells = chain_policy(TELLS)
    prompts = [FILM[:1], [7, 8, 9, *FILM[:3]], FILM[:6]]  # of other lengths, so that two are padded
    rows, finished = write(tells, prompts, stop_strings=["lm i"])
    assert rows == [FILM[1:5], [*FILM[3:], EOS], [FILM[6], EOS]]
    assert finished == [True, True, True]
    assert write(tells, prompts[:1], stop_strings=["lm i"], length=3) == ([FILM[1:4]], [False])


def test_a_stop_string_that_begins_in_the_prompt_ends_nothing():
    # The prompt ends with " film", the first token is " is": "m is" was not written by the policy.
    rows, finished = write(chain_policy(TELLS), [FILM[:4], FILM[:3]], stop_strings=["m is"])
    assert rows == [[*FILM[4:], EOS], FILM[3:5]]
    assert finished == [True, True]


def test_stop_strings_without_any_end_token():
    goes_on = chain_policy(TELLS, otherwise=FILM[0])  # over and over
    rows, finished = write(goes_on, [FILM[:1], FILM[:4]], stop_token="none", stop_strings=["quiet", "is a"], length=9)
    assert rows == [FILM[1:6], FILM[4:6]]
    assert finished == [True, True]


def test_stop_strings_in_training_reach_rewards_as_text_and_end_completions(tmp_path):
    texts = []

    def spy(completions, **kwargs):
        texts.extend(completions)
        return [0.0] * len(completions)

    data = Dataset.from_dict({"input_ids": [FILM[:n] for n in (1, 2, 3, 4, 5, 6, 1, 2)]})
    run = trainer(tmp_path, chain_policy(TELLS), reward=spy, data=data, stop_strings=["is a"], stop_token="none",
                  **ONE_STEP)  # fmt: skip
    run.train()
    whole = ["e film is a", " film is a", "m is a", " is a", "e film is a", " film is a"]
    assert sorted(texts) == sorted([*whole, " a quiet", " quiet"])
    assert logged(run)[0]["rollout/num_eos_tokens"] == 6  # after " is" and " is a" it cannot come any more


def test_generation_kwargs_reach_generate():
    repeats = chain_policy({}, otherwise=FILM[2])
    assert write(repeats, [PROMPT], length=4) == ([[FILM[2]] * 4], [False])
    (completion,), _ = write(repeats, [PROMPT], length=4, no_repeat_ngram_size=1)
    assert len(set(completion)) == 4
    assert not set(completion) & set(PROMPT)


# --- What is refused, and what is said ----------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 3}, "'max_new_tokens', which the trainer decides: give max_completion_length"),
        ({"temperature": 0.1}, "'temperature', which the trainer decides: give temperature itself"),
        ({"num_return_sequences": 2}, "'num_return_sequences', which the trainer decides: give num_generations"),
        ({"do_sample": False}, "'do_sample', which the trainer decides: completions are sampled"),
        ({"eos_token_id": 3}, "'eos_token_id', which the trainer decides: give stop_token_id"),
        ({"top_k": 3}, "'top_k', which is an option of its own: give top_k itself"),
        ({"stop_strings": ["a"]}, "'stop_strings', which is an option of its own"),
        ({"top_kk": 3}, "no option 'top_kk'"),
        ({"validate": 3}, "no option 'validate'"),
    ],
)
def test_what_generation_kwargs_cannot_have_is_refused_with_what_to_give_instead(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, generation_kwargs=given)


def test_without_any_end_the_trainer_asks_for_one(tmp_path):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = None
    model = tiny_policy()
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no completion could end. Name one with stop_token_id.*stop_token='none'"):
        trainer(tmp_path, model, tokenizer=tokenizer)
    trainer(tmp_path, model, tokenizer=tokenizer, stop_token="none")


def test_the_policys_own_distribution_is_not_warned_of(policy, caplog):
    warn_of_distortions(sampling_config(TOKENIZER, policy, 5, 0.7, stop_strings=["a"], stop_token_id=[7], top_k=0,
                                        top_p=1.0, min_p=0.0, repetition_penalty=1.0))  # fmt: skip
    assert [record for record in caplog.records if record.name.startswith("rlhf_recipes")] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("top_k", 50), ("top_p", 0.9), ("min_p", 0.1), ("repetition_penalty", 1.1), ("min_new_tokens", 2), ("top_h", 0.4),
     ("typical_p", 0.9), ("no_repeat_ngram_size", 3), ("suppress_tokens", [5]), ("bad_words_ids", [[5]])],
)  # fmt: skip
def test_another_distribution_is_named_with_what_follows(policy, caplog, option, value):
    warn_of_distortions(sampling_config(TOKENIZER, policy, 5, 0.7, **{option: value}))
    assert f"sampled with {option} {value}, which is not the policy's own distribution" in caplog.text
    assert "objective/kl is then no estimate of the KL and may be negative" in caplog.text


class Reference:
    """A generator that draws from another model than the policy, as a server with stale weights would."""

    def __init__(self, model):
        self.own = LocalGenerator(model)

    def generate(self, *args):
        return self.own.generate(*args)


def flatter(model, share):
    """A copy whose distributions are flatter: its logits are a share of the model's."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight *= share
    return other


@pytest.mark.parametrize("cause", ["top_k", "generator"])
def test_a_negative_kl_is_diagnosed_in_words_once(tmp_path, caplog, cause):
    reference = tiny_policy()
    how = {"top_k": 1} if cause == "top_k" else {"generator": Reference(reference)}
    run = trainer(tmp_path, flatter(reference, 0.5), ref_model=reference, total_episodes=64, learning_rate=1e-6, **how)
    run.train()
    assert all(entry["objective/kl"] < 0 for entry in logged(run))
    assert caplog.text.count("negative by more than chance") == 1
    assert "A KL is never negative" in caplog.text
    assert "sampling options that change the distribution" in caplog.text


def test_a_kl_that_is_negative_by_chance_is_not_diagnosed(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    reference = tiny_policy()
    run = trainer(tmp_path, flatter(reference, 0.9), ref_model=reference, total_episodes=8 * 12, num_ppo_epochs=1,
                  num_mini_batches=1, learning_rate=1e-9)  # fmt: skip
    run.train()
    assert any(entry["objective/kl"] < 0 for entry in logged(run))
    assert "negative by more" not in caplog.text


def test_text_counts_where_there_are_token_ids_too_and_it_is_said(caplog):
    prompts = encode_prompts(Dataset.from_dict({"prompt": ["The film"], "input_ids": [[7, 8]]}), TOKENIZER, 99)
    assert prompts.ids == [TOKENIZER("The film")["input_ids"]]
    assert prompts.dataset.column_names == ["prompt"]
    assert "both 'prompt' and 'input_ids': the prompts are those of 'prompt'" in caplog.text


@pytest.mark.parametrize(
    "prompt", [None, [], [{"role": "user", "content": None}]], ids=["None", "empty", "no content"]
)
def test_a_prompt_that_cannot_be_read_is_named_with_its_row(tmp_path, prompt):
    rows = [[{"role": "user", "content": "The film"}], prompt]
    with pytest.raises(ValueError, match=r"The prompt of row 1 cannot be read: .*leave the row out"):
        trainer(tmp_path, tokenizer=CHATTY, data=Dataset.from_dict({"prompt": rows}))


def test_an_answer_that_the_prompt_begins_is_gone_on_with_and_rewards_see_all_of_it(tmp_path):
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"Well, {n}"}]
        for n, text in enumerate(OPENINGS)
    ]
    texts = [f"<|user|>{text}<|assistant|>Well, {n}" for n, text in enumerate(OPENINGS)]
    seen, written = [], []

    def of_messages(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(prompts, completions, strict=True))
        return many_short_tokens(completion_ids)

    def of_text(completions, completion_ids, **kwargs):
        written.extend(completions)
        return many_short_tokens(completion_ids)

    runs = [
        trainer(tmp_path / name, tokenizer=CHATTY, data=Dataset.from_dict({"prompt": rows}), reward=reward, **ONE_STEP)
        for name, rows, reward in (("messages", chats, of_messages), ("text", texts, of_text))
    ]
    assert runs[0].prompts["train"].ids == runs[1].prompts["train"].ids
    for run in runs:
        run.train()
    assert largest_difference(*map(weights, runs)) == 0
    assert {prompt[0]["content"] for prompt, _ in seen} <= set(OPENINGS)
    for (prompt, completion), text in zip(seen, written, strict=True):
        begun = f"Well, {OPENINGS.index(prompt[-1]['content'])}"
        assert (len(prompt), completion) == (1, [{"role": "assistant", "content": begun + text}])


def test_rewards_are_told_what_the_template_writes_of_the_answer():
    tokenizer = tiny_tokenizer(chat_template=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ '<|assistant|>' }}{% endif %}",
        "{{ '<|assistant|>' }}{% if enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}")  # fmt: skip
    chat = [{"role": "user", "content": "The film"}]
    rows = {"prompt": [chat, chat], "chat_template_kwargs": [{"enable_thinking": True}, {"enable_thinking": False}]}
    prompts = encode_prompts(Dataset.from_dict(rows), tokenizer, 99)
    assert prompts.dataset["answer_opening"][:] == ["<think>\n", ""]
    texts = [tokenizer.decode(ids) for ids in prompts.ids]
    assert texts == ["<|user|>The film<|assistant|><think>\n", "<|user|>The film<|assistant|>"]
