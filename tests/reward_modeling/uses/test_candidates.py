"""Candidates: sampled or given, scored, and what is kept of them."""

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.modeling.generation import pad_left
from rlhf_recipes.reward_modeling.uses.candidates import (
    Candidates,
    best_rows,
    candidate_rows,
    generate_candidates,
    given_candidates,
    judged,
    pair_rows,
    score_candidates,
)
from rlhf_recipes.rewards import EndsWithSentence, WeightedSum, load_rewards
from tests.tiny import keep_the_wrong_logits, tiny_causal_lm, tiny_tokenizer


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def shortness(completions, **kwargs):
    return [-float(len(text)) for text in completions]


def tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


GIVEN = Candidates(["p", "q"], [["aa", "bbbb", "c"], ["dd", "ee"]])


# ---- sampled


@pytest.fixture(scope="module")
def policy():
    tokenizer = tiny_tokenizer(padding_side="left")
    return tiny_causal_lm(tokenizer), tokenizer


def sampled(policy, count, **more):
    rows = Dataset.from_dict({"prompt": ["The film is", "It was"], "reference": ["a", "b"]})
    return generate_candidates(*policy, rows, count, 16, 5, **more)


def test_each_prompt_gets_as_many_samples_and_keeps_its_columns(policy):
    found = sampled(policy, 3)
    assert len(found) == 2
    assert [len(of_prompt) for of_prompt in found.completions] == [3, 3]
    assert found.columns == {"reference": ["a", "b"]}
    assert len({text for of_prompt in found.completions for text in of_prompt}) > 1


def test_neither_batch_size_nor_the_number_of_samples_changes_one(policy):
    four = sampled(policy, 4, batch_size=3)
    two = sampled(policy, 2, batch_size=64)
    assert [of_prompt[:2] for of_prompt in four.completions] == two.completions
    assert sampled(policy, 2, seed=1).completions != two.completions


def test_the_log_probability_is_that_of_the_model_at_the_temperature(policy):
    model, tokenizer = policy
    found = sampled(policy, 1, temperature=0.7)
    ids, _ = pad_left([tokenizer("It was").input_ids + found.ids[1][0]], 0, len(tokenizer("It was").input_ids) + 5)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0] / 0.7
    start = len(tokenizer("It was").input_ids)
    said = [logits[start + t - 1].log_softmax(-1)[token].item() for t, token in enumerate(found.ids[1][0])]
    assert len(said) == 5  # nothing in this case is padding
    assert found.logprobs[1][0] == pytest.approx(sum(said), abs=1e-4)


def test_a_model_that_keeps_the_wrong_logits_is_asked_for_all(policy, caplog):
    model, tokenizer = policy
    found = sampled((keep_the_wrong_logits(tiny_causal_lm(tokenizer)), tokenizer), 1)
    assert "Kept logits: put aside for LlamaForCausalLM, because" in caplog.text
    prompt, written = tokenizer("It was").input_ids, found.ids[1][0]
    with torch.no_grad():
        said = model(torch.tensor([prompt + written])).logits[0].log_softmax(-1)
    expected = [said[len(prompt) + t - 1, token].item() for t, token in enumerate(written)]
    assert found.logprobs[1][0] == pytest.approx(sum(expected), abs=1e-4)


def test_messages_are_answered_with_messages():
    tokenizer = tiny_tokenizer(chat_template=True, padding_side="left")
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Hello"}]]})
    found = generate_candidates(tiny_causal_lm(tokenizer), tokenizer, rows, 2, 32, 4)
    assert [answer[0]["role"] for answer in found.completions[0]] == ["assistant", "assistant"]


def test_no_sample_is_no_candidate(policy):
    with pytest.raises(ValueError, match="number of candidates is 0"):
        sampled(policy, 0)


# ---- given


def test_lists_of_a_dataset_are_candidates():
    rows = Dataset.from_dict(
        {"query": ["q", None], "hits": [["a", "b"], ["c"]], "gold": [[1, 2.5], [0]], "year": [1, 2]}
    )
    found = given_candidates(rows, "hits", "query", "gold")
    assert found.prompts == ["q", ""]
    assert found.completions == [["a", "b"], ["c"]]
    assert found.gold == [[1.0, 2.5], [0.0]]
    assert found.columns == {"year": [1, 2]}
    assert found.alone == 1


def test_rows_need_no_prompt():
    assert given_candidates(Dataset.from_dict({"completions": [["a"]]})).prompts == [""]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"completions": [["a"], []]}, "Row 1 has no list of candidates"),
        ({"completions": ["a text"]}, "Row 0 has no list of candidates"),
        ({"completions": [["a", None]]}, "Candidate 1 of row 0 is missing"),
        ({"completions": [["a", "b"]], "gold": [[1.0]]}, "Row 0 has 2 candidates and 1 values"),
        ({"completions": [["a"]], "gold": [[None]]}, "gold values in row 0"),
        ({"answers": [["a"]]}, "needs the columns 'completions'"),
    ],
)
def test_what_is_no_list_of_candidates_is_named(columns, said):
    with pytest.raises(ValueError, match=said):
        given_candidates(Dataset.from_dict(columns), gold_column="gold" if "gold" in columns else None)


def test_a_policy_may_have_written_nothing(caplog):
    found = given_candidates(Dataset.from_dict({"completions": [["a", ""], [" ", "b"]]}))
    assert found.completions == [["a", ""], [" ", "b"]]
    assert "2 candidates are empty or blank" in caplog.text


# ---- scores


def test_the_sum_and_its_parts_have_the_shape_of_the_candidates():
    scored = score_candidates(WeightedSum([length, EndsWithSentence()], [1.0, 10.0]), GIVEN)
    assert scored.total == [[2.0, 4.0, 1.0], [2.0, 2.0]]
    assert scored.parts["length"] == scored.total


def test_the_columns_of_a_row_are_given_to_each_of_its_candidates():
    def at_hand(completions, bonus, **kwargs):
        return [float(value) for value in bonus]

    found = Candidates(GIVEN.prompts, GIVEN.completions, {"bonus": [1, 2]})
    assert score_candidates(WeightedSum([at_hand]), found).total == [[1, 1, 1], [2, 2]]


def test_candidates_of_a_prompt_are_scored_in_one_call():
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.append(list(prompts))
        return [0.0] * len(completions)

    score_candidates(WeightedSum([reward]), GIVEN, chunk_size=2)
    assert seen == [["p", "p", "p"], ["q", "q"]]


def test_lists_without_a_prompt_are_not_compared_with_one_another():
    calls = []

    class Compares:
        wants_siblings = True

        def __call__(self, prompts, completions, **kwargs):
            calls.append(list(completions))
            return [0.0] * len(completions)

    bare = Candidates(["", ""], GIVEN.completions)
    score_candidates(WeightedSum([Compares()]), bare)
    assert calls == GIVEN.completions
    score_candidates(WeightedSum([Compares()]), GIVEN)
    assert len(calls) == 3  # lists of different prompts are told apart by these


def test_many_lists_without_a_prompt_are_not_sent_at_once():
    def reward(completions, **kwargs):
        assert len(completions) <= 4
        return [0.0] * len(completions)

    score_candidates(WeightedSum([reward]), Candidates([""] * 9, [["a", "b"]] * 9), chunk_size=4)


def test_rewards_that_count_tokens_get_them_from_a_tokenizer():
    rows = Dataset.from_dict({"completions": [["The film", "The"]]})
    tokenizer = tiny_tokenizer()
    found = given_candidates(rows, tokenizer=tokenizer)
    counted = [float(len(tokenizer(text).input_ids)) for text in ("The film", "The")]
    assert score_candidates(WeightedSum([tokens]), found).total == [counted]


def test_a_reward_over_http_chooses_too():
    from tests.rewards.test_remote import Double, lengths

    with Double(lengths) as double:
        rewards = load_rewards([{"func": "RemoteReward", "args": {"url": double.url}}])
        assert score_candidates(rewards, GIVEN).total == [[2.0, 4.0, 1.0], [2.0, 2.0]]


def test_judges_and_gold_watch():
    found = Candidates(GIVEN.prompts, GIVEN.completions, gold=[[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert judged(WeightedSum([shortness]), found) == {
        "shortness": [[-2.0, -4.0, -1.0], [-2.0, -2.0]],
        "gold": [[1.0, 2.0, 3.0], [4.0, 5.0]],
    }
    assert judged(None, GIVEN) == {}


def test_a_judge_that_says_nothing_of_a_candidate_is_refused():
    def questions(completions, **kwargs):
        return [None if text == "ee" else 1.0 for text in completions]

    with pytest.raises(ValueError, match="'questions' says nothing .* row 1 the first"):
        judged(WeightedSum([questions, length]), GIVEN)


def test_a_judge_may_not_take_the_name_of_the_gold_values():
    def gold(completions, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="named 'gold'"):
        judged(WeightedSum([gold]), GIVEN)


# ---- what is kept


def test_the_choice_with_its_order_and_scores():
    scored = score_candidates(WeightedSum([length]), GIVEN)
    first, second = best_rows(GIVEN, scored, {"judge": [[7.0, 8.0, 9.0], [1.0, 2.0]]})
    assert first == {
        "prompt": "p",
        "completion": "bbbb",
        "score": 4.0,
        "chosen": 1,
        "order": [1, 0, 2],
        "all_scores": [2.0, 4.0, 1.0],
        "judges": {"judge": 8.0},
    }
    assert (second["completion"], second["order"]) == ("dd", [0, 1])  # of equal scores the first


def test_what_was_scored_can_be_ranked_again():
    scored = score_candidates(WeightedSum([length]), GIVEN)
    again = given_candidates(Dataset.from_list(list(candidate_rows(GIVEN, scored, {}))))
    assert (again.prompts, again.completions) == (GIVEN.prompts, GIVEN.completions)
    assert again.columns["scores"] == scored.total
    assert again.logprobs is None
    samples = Candidates(GIVEN.prompts, GIVEN.completions, logprobs=[[-1.0, -2.0, -3.0], [-4.0, -5.0]])
    again = given_candidates(Dataset.from_list(list(candidate_rows(samples, scored, {}))))
    assert again.logprobs == samples.logprobs


def test_the_best_against_the_worst_is_a_pair():
    rows, left_out = pair_rows(GIVEN, score_candidates(WeightedSum([length]), GIVEN))
    assert rows == [
        {"prompt": "p", "chosen": "bbbb", "rejected": "c", "chosen_score": 4.0, "rejected_score": 1.0}
    ]  # the two of q are equal
    assert left_out == 1


def test_pairs_that_are_too_close_are_counted():
    scored = score_candidates(WeightedSum([length]), GIVEN)
    assert pair_rows(GIVEN, scored, min_gap=3.0)[1] == 1
    assert pair_rows(GIVEN, scored, min_gap=3.5) == ([], 2)
    with pytest.raises(ValueError, match="min_gap is -1"):
        pair_rows(GIVEN, scored, min_gap=-1)


def test_pairs_are_feedback():
    from rlhf_recipes.data.feedback.read import normalize

    rows, _ = pair_rows(GIVEN, score_candidates(WeightedSum([length]), GIVEN))
    clean, check = normalize(Dataset.from_list(rows))
    assert check.format.kind == "pairs"
    assert clean["chosen"][0] == "bbbb"
