import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from rlhf_recipes.rewards import Fluency, RewardError, WeightedSum
from tests.tiny import keep_the_wrong_logits, save_tiny, tiny_causal_lm, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "It was bad, but", "", "What a "]
COMPLETIONS = [" good.", " and a tired cast make this a long evening.", " 😀 今天 the music was great", "!", "picture"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("llama")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_causal_lm(tokenizer, initializer_range=0.3)


def logprobs_of_ids(model, ids):
    """log p of each id but the first, of one text alone and without padding."""
    with torch.no_grad():
        said = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return [said[place, token].item() for place, token in enumerate(ids[1:])]


def token_logprobs(model, tokenizer, prompts, completions, **settings):
    reward = Fluency(model, processing_class=tokenizer, **settings)
    return [own for _, own in reward.token_logprobs(reward.reader, prompts, completions, {})]


def test_each_token_of_the_completion_is_scored_after_all_before_it(model, tokenizer):
    prompt, completion = tokenizer("The film is").input_ids, tokenizer(" good.").input_ids
    assert tokenizer("The film is good.").input_ids == prompt + completion
    expected = logprobs_of_ids(model, prompt + completion)[-len(completion) :]
    assert len(set(expected)) == len(expected) > 1
    assert token_logprobs(model, tokenizer, ["The film is"], [" good."]) == [pytest.approx(expected, abs=1e-5)]
    assert Fluency(model, processing_class=tokenizer)(["The film is"], [" good."]) == pytest.approx(
        [sum(expected) / len(expected)], abs=1e-5
    )


def test_a_model_that_keeps_the_wrong_logits_is_asked_for_all(model, tokenizer, caplog):
    wrong = keep_the_wrong_logits(tiny_causal_lm(tokenizer, initializer_range=0.3))
    ids = tokenizer("The film is good.").input_ids
    count = len(tokenizer(" good.").input_ids)
    expected = [pytest.approx(logprobs_of_ids(model, ids)[-count:], abs=1e-5)]
    assert token_logprobs(wrong, tokenizer, ["The film is"], [" good."]) == expected
    assert caplog.text.count("Kept logits: put aside for LlamaForCausalLM, because") == 1
    assert token_logprobs(wrong, tokenizer, ["The film is"], [" good."]) == expected
    assert caplog.text.count("put aside") == 1  # said once


def test_a_uniform_model_gives_every_token_one_over_the_vocabulary(tokenizer):
    model = tiny_causal_lm(tokenizer)
    torch.nn.init.zeros_(model.lm_head.weight)
    each = -torch.log(torch.tensor(float(len(tokenizer)))).item()
    count = len(tokenizer(" good, and long").input_ids)
    row = {"prompts": ["A film,"], "completions": [" good, and long"]}
    assert Fluency(model, processing_class=tokenizer)(**row) == pytest.approx([each], abs=1e-5)
    by_word = Fluency(model, normalize="word", processing_class=tokenizer)
    assert by_word(**row) == pytest.approx([count * each / 3], abs=1e-4)  # good, | and | long
    total = Fluency(model, normalize="none", processing_class=tokenizer)
    assert total(**row) == pytest.approx([count * each], abs=1e-4)


def test_a_token_that_spans_the_boundary_belongs_to_the_completion(model, tokenizer):
    whole = tokenizer("The film is").input_ids
    first = tokenizer("The film").input_ids
    assert whole[: len(first)] == first
    expected = logprobs_of_ids(model, whole)[len(first) - 1 :]
    # The first token after "The film" begins with the space, which is the prompt's last character.
    assert tokenizer.decode(whole[len(first)]).startswith(" ")
    assert token_logprobs(model, tokenizer, ["The film "], ["is"]) == [pytest.approx(expected, abs=1e-5)]


def test_without_a_prompt_the_first_token_follows_the_beginning_of_sequence(model, tokenizer):
    ids = [tokenizer.bos_token_id, *tokenizer("Nobody could").input_ids]
    expected = logprobs_of_ids(model, ids)
    assert token_logprobs(model, tokenizer, [""], ["Nobody could"]) == [pytest.approx(expected, abs=1e-5)]
    alone = Fluency(model, on_prompt=False, processing_class=tokenizer)
    assert alone(["The film is"], ["Nobody could"]) == pytest.approx([sum(expected) / len(expected)], abs=1e-5)


def test_special_tokens_that_the_tokenizer_adds_are_read_and_not_scored():
    tokenizer = tiny_tokenizer("bert")  # [CLS] text [SEP]
    tokenizer.bos_token = "[CLS]"
    tokenizer.eos_token = "[SEP]"
    model = tiny_causal_lm(tokenizer, initializer_range=0.3)
    ids = tokenizer("The film is").input_ids
    expected = logprobs_of_ids(model, ids[:-1])
    assert token_logprobs(model, tokenizer, [""], ["The film is"]) == [pytest.approx(expected, abs=1e-5)]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_padding_and_batches_change_nothing(model, tokenizer, batch_size):
    alone = [token_logprobs(model, tokenizer, [p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    together = token_logprobs(model, tokenizer, PROMPTS, COMPLETIONS, batch_size=batch_size)
    assert together == [pytest.approx(row, abs=1e-5) for row in alone]
    reward = Fluency(model, processing_class=tokenizer, batch_size=batch_size)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx([sum(row) / len(row) for row in alone], abs=1e-5)


def test_a_conversation_is_read_up_to_the_answer(model):
    tokenizer = tiny_tokenizer("llama", chat_template=True)
    prompt = [{"role": "user", "content": "Was it good?"}]
    answer = [{"role": "assistant", "content": "yes"}]
    before = tokenizer("<|user|>Was it good?<|assistant|>").input_ids
    ids = tokenizer("<|user|>Was it good?<|assistant|>yes").input_ids
    expected = logprobs_of_ids(model, ids)[len(before) - 1 :]
    for completion in (answer, "yes"):
        assert token_logprobs(model, tokenizer, [prompt], [completion]) == [pytest.approx(expected, abs=1e-5)]
    tokenizer.chat_template = None  # then the texts stand one below the other
    plain = token_logprobs(model, tokenizer, ["Was it good?\n"], ["yes"])
    assert token_logprobs(model, tokenizer, [prompt], [answer]) == [pytest.approx(plain[0], abs=1e-6)]


def test_where_there_is_nothing_to_score_it_does_not_apply(model, tokenizer):
    for normalize in ("token", "word", "none"):
        reward = Fluency(model, normalize=normalize, processing_class=tokenizer)
        assert reward(["The film is", ""], ["", ""]) == [None, None]
        assert reward(["The film is"], ["..."])[0] < 0.0
    assert Fluency(model, normalize="word", processing_class=tokenizer)(["The film"], [" \n"]) == [None]
    assert Fluency(model, processing_class=tokenizer)([], []) == []


def test_a_long_text_loses_its_beginning_and_says_so(model, tokenizer, caplog):
    reward = Fluency(model, processing_class=tokenizer)
    assert reward.reader.max_length == 512
    ids = tokenizer(" good" * 10_000).input_ids[-512:]
    expected = logprobs_of_ids(model, ids)  # the first of the 512 has lost what stood before it
    assert reward(["The film is"], [" good" * 10_000]) == pytest.approx([sum(expected) / 511], abs=1e-4)
    assert reward.reader.truncated == 1
    assert "1 of 1 texts are longer than its max_length of 512 tokens" in caplog.text
    cut = token_logprobs(model, tokenizer, ["The film is"], [" good" * 10_000], max_length=512)
    assert cut == [pytest.approx(expected, abs=1e-5)]


def test_the_reference_policy_needs_no_model():
    reward = Fluency(model="reference")
    assert reward.wants_ref_logprobs
    assert reward.reader is None
    rows = {
        "prompts": ["a"] * 4,
        "completions": [" b c", "", " d", " e"],
        "completion_ids": [[1, 2, 0], [0], [3], [4]],
    }
    ref = [[-1.0, -2.0, -3.0], [-5.0], None, [-0.5]]
    assert reward(**rows, ref_logprobs=ref) == [-2.0, None, None, -0.5]
    assert Fluency("reference", normalize="word")(**rows, ref_logprobs=ref) == [-3.0, None, None, -0.5]
    assert Fluency("reference", normalize="none")(**rows, ref_logprobs=ref) == [-6.0, None, None, -0.5]


def test_a_trainer_without_a_reference_is_told_what_to_do():
    for missing in ({}, {"ref_logprobs": None}):
        with pytest.raises(ValueError, match=r"GRPOTrainer and RLOOTrainer do not. Name a model instead"):
            Fluency("reference")(prompts=["a"], completions=["b"], completion_ids=[[1]], **missing)


def test_only_the_reference_asks_for_reference_logprobs(model, tokenizer):
    assert not Fluency(model, processing_class=tokenizer).wants_ref_logprobs


def test_a_model_that_gives_nan_is_named(tokenizer):
    model = tiny_causal_lm(tokenizer)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    reward = Fluency(model, processing_class=tokenizer, name="lm")
    with pytest.raises(RewardError, match=r"'lm' gave nan, for row 1 \(prompt 'The', completion ' film'\)"):
        reward(["A", "The"], ["", " film"])
    with pytest.raises(RewardError, match="'Fluency' gave -inf, for row 0"):
        Fluency("reference")(["A"], ["b"], ref_logprobs=[[-1.0, float("-inf")]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"normalize": "letter"}, "normalize of Fluency is 'letter'; it must be one of token, word, none"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"max_length": 600}, "max_length is 600, but must be from 1 to 512"),
        ({"load_in_4bit": True}, "come too late"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, tokenizer, settings, words):
    with pytest.raises(ValueError, match=words):
        Fluency(model, processing_class=tokenizer, **settings)


def test_the_reference_takes_no_options_of_a_model():
    for settings in ({"on_prompt": False}, {"max_length": 9}, {"load_in_4bit": True}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"Fluency\(model='reference'\) loads no model"):
            Fluency("reference", **settings)


def test_a_tokenizer_without_offsets_is_refused(model, tokenizer):
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
    with pytest.raises(ValueError, match="does not tell which characters a token stands for"):
        Fluency(model, processing_class=slow)


def test_it_is_loaded_from_a_folder_pickled_small_and_weighed_in_a_sum(tmp_path, model, tokenizer):
    folder = save_tiny(tmp_path / "lm", model, tokenizer)
    reward = Fluency(folder, batch_size=2)
    assert reward.__name__ == "Fluency"
    expected = Fluency(model, processing_class=tokenizer)(PROMPTS, COMPLETIONS)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    pickled = pickle.dumps(reward)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    total = WeightedSum([reward], [2.0])(PROMPTS, COMPLETIONS, [[1]] * 5)
    assert total == pytest.approx([2 * value for value in expected], abs=1e-5)
    assert pickle.loads(pickle.dumps(Fluency("reference", name="ref"))).__name__ == "ref"


def test_a_lora_adapter_is_read_on_its_base(tmp_path, model, tokenizer):
    save_tiny(tmp_path / "base", model, tokenizer)
    base = type(model).from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = tokenizer("The film is good.").input_ids
    count = len(tokenizer(" good.").input_ids)
    expected = sum(logprobs_of_ids(adapted, ids)[-count:]) / count
    assert Fluency(tmp_path / "adapter")(["The film is"], [" good."]) == pytest.approx([expected], abs=1e-5)


def test_the_model_reads_without_dropout_and_the_tokenizer_is_left_as_it_is(tokenizer):
    model = tiny_causal_lm(tokenizer, attention_dropout=0.5)
    model.train()
    side = tokenizer.truncation_side
    first, second = (token_logprobs(model, tokenizer, ["The film"], [" is good."]) for _ in range(2))
    assert first == second
    assert tokenizer.truncation_side == side
