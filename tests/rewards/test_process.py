import pickle
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertForTokenClassification, PreTrainedTokenizerFast

from rlhf_recipes.modeling.reading import TokenPlaces, token_pieces
from rlhf_recipes.rewards import RewardError, WeightedSum
from rlhf_recipes.rewards.process import StepModel, StepReward, TokenClassifierReward
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "It was bad, but", ""]
COMPLETIONS = [" good.", " and a tired cast make this a long evening", " 😀 今天 the music was great", "!"]


@pytest.fixture(scope="module")
def policy():
    return tiny_tokenizer("llama", vocab_size=300)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("bert")


@pytest.fixture(scope="module")
def classifier(tokenizer):
    return token_classifier(tokenizer)


def token_classifier(tokenizer, **config):
    settings = tiny_classifier(tokenizer, **{"num_labels": 1, **config}).config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForTokenClassification(settings).eval()
        torch.nn.init.normal_(model.classifier.weight)
    return model


def ids_of(policy, text):
    return [*policy(text).input_ids, policy.eos_token_id]


def logits_of(model, tokenizer, text):
    """What the classifier says of each token of one text alone, with the characters that the token stands for."""
    said = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = said.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        return model(**said).logits[0], offsets


# Characters and tokens


def test_the_pieces_of_a_text_are_those_of_its_tokens(policy):
    ids = ids_of(policy, "The film")
    expected = [policy.decode([token]) for token in ids[:-1]]
    assert token_pieces(policy, ids) == [*expected, ""]
    assert "".join(expected) == "The film"


def test_a_character_of_several_tokens_belongs_to_the_last(policy):
    ids = ids_of(policy, "a😀b")  # the emoji has four bytes, and none of them are joined in this vocabulary
    assert len(ids) == 7
    assert token_pieces(policy, ids) == ["a", "", "", "", "😀", "b", ""]
    assert token_pieces(policy, ids[:3]) == ["a", "", "\ufffd"]  # cut off in the middle
    assert token_pieces(policy, [*ids[:3], policy.eos_token_id]) == ["a", "", "\ufffd", ""]
    assert token_pieces(policy, []) == []


def test_any_tokens_make_up_what_they_decode_to(policy):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(len(policy), (30,), generator=generator).tolist()
        pieces = token_pieces(policy, ids)
        assert len(pieces) == 30
        assert "".join(pieces) == policy.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_that_strips_the_first_space_keeps_the_others():
    vocabulary = {"<eos>": 0, "▁a": 1, "▁film": 2, "s": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert token_pieces(tokenizer, [1, 2, 3, 1, 0]) == ["a", " film", "s", " a", ""]
    assert token_pieces(tokenizer, [2, 0, 1]) == ["film", "", " a"]


def test_the_place_of_a_character_is_the_token_that_it_ends_in(policy):
    ids = ids_of(policy, "a😀b")
    places = TokenPlaces(policy, ids, "a😀b")
    assert [places.of(end) for end in (1, 2, 3)] == [0, 4, 5]
    with pytest.raises(ValueError, match="makes 'a😀b' of completion_ids, but the completion is 'a good film'"):
        TokenPlaces(policy, ids, "a good film")


# Token classifier


def test_a_policy_token_gets_the_scores_of_the_tokens_that_end_in_it(classifier, tokenizer, policy):
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    prompt, completion = "The film is", " good, and 😀 funny"
    logits, offsets = logits_of(classifier, tokenizer, prompt + completion)
    ids = ids_of(policy, completion)
    expected = [0.0] * len(ids)
    ends = []  # the last character of each policy token, worked out from its bytes
    for token in ids[:-1]:
        ends.append((ends[-1] if ends else 0) + len(bytes_of(policy, token)))
    for score, (start, end) in zip(logits[:, 0].tolist(), offsets, strict=True):
        if end > len(prompt) and start != end:
            end_in_bytes = len((prompt + completion)[len(prompt) : end].encode())
            expected[next(t for t, last in enumerate(ends) if last >= end_in_bytes)] += score
    assert reward([prompt], [completion], [ids]) == [pytest.approx(expected, abs=1e-5)]
    of_completion = [s for s, (_, end) in zip(logits[:, 0].tolist(), offsets, strict=True) if end > len(prompt)]
    assert sum(expected) == pytest.approx(sum(of_completion), abs=1e-5)
    assert expected[-1] == 0.0  # the end of the sequence
    assert sum(value != 0.0 for value in expected) > 5


def bytes_of(tokenizer, token):
    """The bytes of a token of byte-level BPE, each as one sign of its alphabet."""
    return tokenizer.convert_ids_to_tokens(token)


def test_with_the_policys_own_tokenizer_each_token_gets_its_own_score(policy):
    model = token_classifier(policy)
    logits, _ = logits_of(model, policy, "The film is good, and funny")
    count = len(policy(" good, and funny").input_ids)
    reward = TokenClassifierReward(model, policy, processing_class=policy)
    expected = [*logits[-count:, 0].tolist(), 0.0]
    said = reward(["The film is"], [" good, and funny"], [ids_of(policy, " good, and funny")])
    assert said == [pytest.approx(expected, abs=1e-5)]


def test_labels_are_weighed_and_become_probabilities(tokenizer, policy):
    model = token_classifier(tokenizer, num_labels=2, id2label={0: "clean", 1: "toxic"})
    ids = ids_of(policy, " good.")
    logits, offsets = logits_of(model, tokenizer, "The film is good.")
    kept = [place for place, (_, end) in enumerate(offsets) if end > len("The film is")]
    row = (["The film is"], [" good."], [ids])
    settings = {"processing_class": tokenizer, "policy_tokenizer": policy}
    toxic = TokenClassifierReward(model, labels={"toxic": -1.0}, probabilities=True, **settings)
    expected = -logits.softmax(dim=1)[kept, 1].sum().item()
    assert sum(toxic(*row)[0]) == pytest.approx(expected, abs=1e-5)
    clean = TokenClassifierReward(model, label="clean", **settings)
    assert sum(clean(*row)[0]) == pytest.approx(logits[kept, 0].sum().item(), abs=1e-5)
    with pytest.raises(ValueError, match="has 2 labels, clean, toxic: say which is the reward by label"):
        TokenClassifierReward(model, **settings)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_padding_and_batches_change_nothing(classifier, tokenizer, policy, batch_size):
    ids = [ids_of(policy, text) for text in COMPLETIONS]
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer, batch_size=batch_size)
    alone = [reward([p], [c], [i])[0] for p, c, i in zip(PROMPTS, COMPLETIONS, ids, strict=True)]
    together = reward(PROMPTS, COMPLETIONS, ids)
    assert [len(row) for row in together] == [len(row) for row in ids]
    assert together == [pytest.approx(row, abs=1e-5) for row in alone]


def test_an_empty_completion_has_no_score(classifier, tokenizer, policy):
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    eos = [policy.eos_token_id]
    assert reward(["The film", "", "A"], ["", "", "."], [eos, [], [*policy(".").input_ids, *eos]])[:2] == [None, None]
    assert reward([], [], []) == []


def test_a_long_completion_keeps_one_number_for_each_token(classifier, tokenizer, policy, caplog):
    text = " good" * 10_000
    ids = ids_of(policy, text)
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    scores = reward(["The film is"], [text], [ids])[0]
    assert len(scores) == len(ids)
    assert scores[:100] == [0.0] * 100  # cut off
    assert scores[-2] != 0.0
    assert "1 of 1 texts are longer than its max_length of 256 tokens" in caplog.text


def test_the_policys_tokenizer_must_be_the_policys(classifier, tokenizer, policy):
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    with pytest.raises(ValueError, match="Give the policy's own tokenizer as policy_tokenizer"):
        reward(["The"], [" film"], [ids_of(tiny_tokenizer("llama", vocab_size=400), " good film")])


def test_a_conversation_is_scored_by_its_answer(classifier, tokenizer, policy):
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    prompt = [{"role": "user", "content": "Was it good?"}]
    answer = [{"role": "assistant", "content": "yes"}]
    ids = ids_of(policy, "yes")
    plain = reward(["Was it good?\n"], ["yes"], [ids])  # without a chat template one stands below the other
    assert reward([prompt], [answer], [ids]) == [pytest.approx(plain[0], abs=1e-5)]


def test_what_the_prompt_had_begun_of_an_answer_counts_for_its_first_token(classifier, tokenizer, policy):
    reward = TokenClassifierReward(classifier, policy, processing_class=tokenizer)
    prompt, ids = [{"role": "user", "content": "Was it good?"}], ids_of(policy, " good film")
    whole = reward([prompt], [[{"role": "assistant", "content": "A very good film"}]], [ids])[0]
    alone = reward([prompt], [[{"role": "assistant", "content": " good film"}]], [ids])[0]
    assert len(whole) == len(alone) == len(ids)
    assert whole[0] != pytest.approx(alone[0])


def test_a_classifier_that_gives_nan_is_named(tokenizer, policy):
    model = token_classifier(tokenizer)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    reward = TokenClassifierReward(model, policy, processing_class=tokenizer, name="tokens")
    with pytest.raises(RewardError, match="'tokens' gave nan, for row 1"):
        reward(["", "A"], ["", " film"], [[policy.eos_token_id], ids_of(policy, " film")])


def test_it_is_loaded_from_folders_pickled_small_and_weighed_in_a_sum(tmp_path, classifier, tokenizer, policy):
    folder = save_tiny(tmp_path / "classifier", classifier, tokenizer)
    save_tiny(tmp_path / "policy", tiny_causal_lm(policy), policy)
    ids = [ids_of(policy, text) for text in COMPLETIONS]
    reward = TokenClassifierReward(folder, tmp_path / "policy")
    expected = TokenClassifierReward(classifier, policy, processing_class=tokenizer)(PROMPTS, COMPLETIONS, ids)
    pickled = pickle.dumps(reward)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again.per_token, again.__name__) == (True, "TokenClassifierReward")
    assert again(PROMPTS, COMPLETIONS, ids) == [pytest.approx(row, abs=1e-5) for row in expected]
    total = WeightedSum([reward], [0.5])
    parts = total.parts(PROMPTS, COMPLETIONS, ids)
    assert total.combine_tokens(parts, ids) == [pytest.approx([0.5 * v for v in row], abs=1e-5) for row in expected]


# Steps


def lengths(prompt, steps):
    return [float(len(step)) for step in steps]


def first_words(prompt, steps):
    first_words.seen.append((prompt, steps))
    return [0.5] * len(steps)


ANSWER = "Add them.\n\nThat makes 4.\n\n \n\nSo 4."  # steps of 9, 13 and 5 characters


@pytest.mark.parametrize(
    ("reduce", "expected"), [("last", 5.0), ("min", 5.0), ("mean", 9.0), ("product", 9.0 * 13.0 * 5.0)]
)
def test_the_scores_of_the_steps_become_one_number(reduce, expected):
    assert StepReward(lengths, reduce=reduce)(["2 + 2?"], [ANSWER], [[1]]) == [expected]


def test_a_function_is_given_the_prompt_and_the_steps():
    first_words.seen = []
    prompt = [{"role": "user", "content": "2 + 2?"}]
    StepReward(first_words)([prompt, "x"], [[{"role": "assistant", "content": ANSWER}], " one"], [[1], [1]])
    assert first_words.seen == [(prompt, ["Add them.", "That makes 4.", "So 4."]), ("x", ["one"])]


@pytest.mark.parametrize(
    "settings",
    [
        {"separator": "\n"},
        {"separator": r"\n+", "regex": True},
        {"separator": re.compile(r"\s*\n\s*")},
        {"separator": r"(?=Step \d)", "regex": True},  # nothing between the steps
        {"steps": lambda text: ["Step 1: a.", "", "Step 2: bcd."]},
    ],
)
def test_steps_are_found_in_the_ways_offered(settings):
    text = "Step 1: a.\n Step 2: bcd.\n"
    assert StepReward(lengths, reduce="mean", **settings)([""], [text], [[1]]) == [11.0]
    assert StepReward(lengths, reduce="last", **settings)([""], [text], [[1]]) == [12.0]


def test_a_completion_without_a_step_has_no_score():
    for reduce in ("last", "min", "mean", "product"):
        assert StepReward(lengths, reduce=reduce)([""] * 4, ["", "\n\n", " ", "."], [[1]] * 4) == [None] * 3 + [1.0]


def test_steps_are_paid_at_the_token_in_which_they_end(policy):
    text = "Add 😀\n\nSo 4.\n\n"
    ids = ids_of(policy, text)
    pieces = token_pieces(policy, ids)
    expected = [0.0] * len(ids)
    expected[pieces.index("😀")] = 5.0
    expected[len(pieces) - 1 - pieces[::-1].index(".")] = 5.0
    reward = StepReward(lengths, reduce="per_token", policy_tokenizer=policy)
    assert reward.per_token
    said = reward(["", "", ""], [text, "", "one"], [ids, [policy.eos_token_id], ids_of(policy, "one")])
    assert said[:2] == [expected, None]
    assert sum(said[2]) == 3.0
    assert said[2][-2:] == [3.0, 0.0]


def test_steps_that_end_in_one_token_are_added_up():
    policy = tiny_tokenizer("llama")
    ids = policy("The film").input_ids
    assert token_pieces(policy, ids) == ["Th", "e", " fil", "m"]
    letters = StepReward(lengths, steps=list, reduce="per_token", policy_tokenizer=policy)
    assert letters([""], ["The film"], [ids]) == [[2.0, 1.0, 3.0, 1.0]]


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (
            lambda prompt, steps: [1.0],
            r"one finite number for each of the 2 steps \['a', 'b'\] of row 1, but gave \[1.0\]",
        ),
        (lambda prompt, steps: [float("nan")] * len(steps), r"of row 0, but gave \[nan\]"),
        (lambda prompt, steps: ["good"] * len(steps), r"of row 0, but gave \['good'\]"),
    ],
)
def test_a_function_that_gives_no_score_for_a_step_is_an_error(score, words):
    with pytest.raises(RewardError, match=words):
        StepReward(score, name="steps")(["", ""], ["a", "a\n\nb"], [[1], [1]])


def test_steps_that_are_not_in_the_text_are_an_error():
    reward = StepReward(lengths, steps=lambda text: ["b", "a"])
    with pytest.raises(RewardError, match="gave 'a', which is not in the text of row 0 after the step before it"):
        reward([""], ["a b"], [[1]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce": "sum"}, "last, min, mean, product, per_token, not by 'sum'"),
        ({"reduce": "per_token"}, "reduce='per_token' needs it"),
        ({"policy_tokenizer": tiny_tokenizer()}, "reduce='per_token' needs it, and nothing else does"),
        ({"separator": ""}, "The separator is empty"),
        ({"separator": "(", "regex": True}, r"The separator '\(' is no pattern of Python's re"),
        ({"separator": "\n", "steps": str.split}, "give one of them"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        StepReward(lengths, **settings)
    with pytest.raises(TypeError, match="but is of type int"):
        StepReward(3)


# Process reward models


def test_a_token_classifier_judges_at_the_mark_after_each_step(tokenizer, policy):
    model = token_classifier(tokenizer, num_labels=2)
    parts = ["2 + 2?", "Add them.", "\n", "So 4.", "\n"]
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in parts]
    with torch.no_grad():
        said = model(torch.tensor([sum(ids, [])])).logits[0].softmax(dim=1)[:, 1].tolist()
    marks = [sum(map(len, ids[:3])) - 1, sum(map(len, ids)) - 1]
    expected = [said[mark] for mark in marks]
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    score = StepModel(model, label=1, processing_class=tokenizer)
    row = (["2 + 2?"], ["Add them.\n\nSo 4."], [ids_of(policy, "Add them.\n\nSo 4.")])
    assert StepReward(score)(*row) == pytest.approx([expected[1]], abs=1e-5)
    assert StepReward(score, reduce="min")(*row) == pytest.approx([min(expected)], abs=1e-5)
    assert StepReward(score, reduce="mean")(*row) == pytest.approx([sum(expected) / 2], abs=1e-5)
    paid = StepReward(score, reduce="per_token", policy_tokenizer=policy)(*row)[0]
    assert [value for value in paid if value] == pytest.approx(expected, abs=1e-5)


def test_a_causal_model_weighs_two_tokens_against_each_other():
    tokenizer = tiny_tokenizer("llama")
    model = tiny_causal_lm(tokenizer, initializer_range=0.3)
    good, bad = tokenizer("+").input_ids[0], tokenizer("-").input_ids[0]
    expected = []
    for text in ("2 + 2? Add them. #", "2 + 2? Add them. #\nSo 4. #"):
        with torch.no_grad():
            last = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double().exp()
        expected.append((last[good] / (last[good] + last[bad])).item())
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    score = StepModel(model, " #", good_token="+", bad_token="-", processing_class=tokenizer)
    for reduce, value in (("last", expected[1]), ("product", expected[0] * expected[1])):
        reward = StepReward(score, separator="\n", reduce=reduce)
        assert reward(["2 + 2?"], [" Add them.\nSo 4."], [[1]]) == pytest.approx([value], abs=1e-5)


@pytest.fixture(scope="module", params=["classifier", "causal"])
def step_model(request):
    if request.param == "classifier":
        tokenizer = tiny_tokenizer("bert")
        return StepModel(token_classifier(tokenizer, num_labels=2), label=1, processing_class=tokenizer)
    tokenizer = tiny_tokenizer("llama")
    model = tiny_causal_lm(tokenizer, initializer_range=0.3, max_position_embeddings=256)
    return StepModel(model, " #", good_token="+", bad_token="-", processing_class=tokenizer)


def test_a_row_has_the_same_score_whatever_it_is_batched_with(step_model):
    completions = ["a good film\n\nand long", "", "one", "今天 😀\n\n.\n\nthe end of a long evening", "x\n\n\n\n\ny"]
    for reduce in ("last", "product"):
        reward = StepReward(step_model, reduce=reduce)
        together = reward(["The", "", "A", "", "B"], completions, [[1]] * 5)
        alone = [reward([p], [c], [[1]])[0] for p, c in zip(["The", "", "A", "", "B"], completions, strict=True)]
        assert together[1] is None
        assert [v for v in together if v is not None] == pytest.approx([v for v in alone if v is not None], abs=1e-5)
        assert all(0.0 < value < 1.0 for value in together if value is not None)


def test_steps_that_the_model_cannot_read_are_left_out(step_model, policy, caplog):
    step_model.reader.truncated = 0
    text = "one step\n\n" * 300 + "the last"
    ids = ids_of(policy, text)
    scores = StepReward(step_model, reduce="per_token", policy_tokenizer=policy)(["The"], [text], [ids])[0]
    assert len(scores) == len(ids)
    paid = [t for t, value in enumerate(scores) if value]
    assert 10 < len(paid) < 300
    assert paid[-1] == len(ids) - 2
    assert "1 of 1 texts are longer than its max_length of 256 tokens" in caplog.text
    assert 0.0 < StepReward(step_model, reduce="min")(["The"], [text], [ids])[0] < 1.0
    assert len(StepReward(step_model, reduce="last")([""], ["x " * 10_000], [[1]])) == 1


def test_a_step_model_that_gives_nan_is_named(tokenizer):
    model = token_classifier(tokenizer, num_labels=2)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    reward = StepReward(StepModel(model, label=1, processing_class=tokenizer), reduce="min", name="steps")
    with pytest.raises(RewardError, match="'steps' gave nan, for row 1"):
        reward(["", ""], ["", "a"], [[1], [1]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"good_token": "+"}, "good_token and bad_token belong together"),
        ({"good_token": "+", "bad_token": "-", "label": 1}, "for a token classifier, good_token and bad_token for a"),
        ({"good_token": "😀", "bad_token": "-"}, "good_token '😀' is 4 tokens of the model's tokenizer"),
        ({"step_token": "", "good_token": "+", "bad_token": "-"}, "makes no token of step_token ''"),
    ],
)
def test_step_models_that_cannot_be_are_refused(settings, words):
    tokenizer = tiny_tokenizer("llama")
    with pytest.raises(ValueError, match=words):
        StepModel(tiny_causal_lm(tokenizer), processing_class=tokenizer, **settings)


def test_a_step_reward_survives_pickling_and_is_weighed_in_a_sum(tmp_path, tokenizer, policy):
    folder = save_tiny(tmp_path / "prm", token_classifier(tokenizer, num_labels=2), tokenizer)
    save_tiny(tmp_path / "policy", tiny_causal_lm(policy), policy)
    settings = {"reduce": "per_token", "policy_tokenizer": str(tmp_path / "policy"), "name": "steps"}
    reward = StepReward({"model": str(folder), "label": 1}, **settings)
    ids = [ids_of(policy, ANSWER)]
    expected = reward(["2 + 2?"], [ANSWER], ids)
    pickled = pickle.dumps([reward, StepReward(lengths, separator=re.compile("\n"))])
    assert len(pickled) < 1000
    again, by_function = pickle.loads(pickled)
    assert again.per_token
    assert again(["2 + 2?"], [ANSWER], ids) == [pytest.approx(expected[0], abs=1e-6)]
    assert by_function([""], ["a\nbc"], [[1]]) == [2.0]
    total = WeightedSum([reward, by_function], [2.0, 1.0])
    said = total(["2 + 2?"], [ANSWER], ids)
    assert said == pytest.approx([2.0 * sum(expected[0]) + 5.0], abs=1e-5)


def test_the_score_of_steps_may_be_a_function_of_a_file(tmp_path):
    file = tmp_path / "steps.py"
    file.write_text("def lengths(prompt, steps):\n    return [float(len(step)) for step in steps]\n")
    reward = StepReward(f"{file}:lengths", reduce="mean")
    assert reward(["?"], ["ab\n\ncdef"], [[1]]) == [3.0]
    assert pickle.loads(pickle.dumps(reward))(["?"], ["ab\n\ncdef"], [[1]]) == [3.0]
    with pytest.raises(ValueError, match="There is no 'length' in"):
        StepReward(f"{file}:length")
