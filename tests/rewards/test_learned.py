import json
import logging
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers.utils import is_bitsandbytes_available

from rlhf_recipes.modeling.reading import say_plain_reading
from rlhf_recipes.rewards import LearnedReward, LogisticCalibration, RewardError, RewardModelSettings, WeightedSum
from tests.base_tokenizers import BASES, base_tokenizer
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

KINDS = ("bert", "llama")
PROMPTS = ["The film is", "A dull script", "It was bad, but", "What a"]
COMPLETIONS = [" good.", " and a tired cast make this a long evening for all of us.", " the music was great", "!"]


def logit(model, tokenizer, text, **kwargs):
    """What the model says of one text alone, without any padding."""
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", **kwargs)).logits[0, 0].item()


def reward_of(kind, **kwargs):
    tokenizer = tiny_tokenizer(kind)
    return LearnedReward(tiny_classifier(tokenizer, kind), tokenizer, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_logit_of_prompt_and_completion(kind):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind)
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = [logit(model, tokenizer, text) for text in texts]
    assert max(expected) - min(expected) > 0.1  # else nothing here would be tested
    scores = LearnedReward(model, tokenizer)(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[]] * 4)
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batches_change_nothing(kind, padding_side):
    tokenizer = tiny_tokenizer(kind, padding_side=padding_side)
    model = tiny_classifier(tokenizer, kind)
    alone = [LearnedReward(model, tokenizer)([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    for batch_size in (1, 2, 3, 32):
        together = LearnedReward(model, tokenizer, batch_size=batch_size)(PROMPTS, COMPLETIONS)
        assert together == pytest.approx(alone, abs=1e-5)
    assert tokenizer.padding_side == padding_side  # the user's own is left as it was


def test_results_come_in_the_order_of_the_rows():
    reward = reward_of("bert", batch_size=2)
    scores = reward(PROMPTS, COMPLETIONS)
    assert reward(PROMPTS[::-1], COMPLETIONS[::-1]) == pytest.approx(scores[::-1], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_gives_the_same_scores(kind, tmp_path):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind)
    folder = save_tiny(tmp_path / "my-reward", model, tokenizer)
    reward = LearnedReward(folder, device="cpu")
    assert reward.__name__ == "my-reward"
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(
        LearnedReward(model, tokenizer)(PROMPTS, COMPLETIONS), abs=1e-6
    )
    assert LearnedReward(str(folder), name="judge").__name__ == "judge"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_adapter_is_loaded_with_its_head(kind, tmp_path):
    tokenizer = tiny_tokenizer(kind)
    # The base has no head yet, as when a language model becomes a reward model.
    base = tiny_causal_lm(tokenizer) if kind == "llama" else tiny_classifier(tokenizer, kind, num_labels=3).bert
    save_tiny(tmp_path / "base", base, tokenizer)
    model = type(tiny_classifier(tokenizer, kind)).from_pretrained(tmp_path / "base", num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = [logit(adapted, tokenizer, p + c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    reward = LearnedReward(tmp_path / "adapter")  # and the tokenizer is found with the base
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_a_head_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    save_tiny(tmp_path / "base", tiny_causal_lm(tokenizer), tokenizer)
    model = type(tiny_causal_lm(tokenizer)).from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds no trained head \(modules_to_save: none\)"):
        LearnedReward(tmp_path / "adapter")


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = save_tiny(tmp_path / "policy", tiny_causal_lm(tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"lack score.weight, so these weights would be random"):
        LearnedReward(folder)


def test_the_reward_model_keeps_its_own_tokenizer():
    policy_tokenizer = tiny_tokenizer("llama", vocab_size=280)
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer, "bert")
    text = " a wonderful little picture"
    ids = policy_tokenizer(text).input_ids
    assert ids != tokenizer(text, add_special_tokens=False).input_ids
    score = LearnedReward(model, tokenizer)(prompts=[""], completions=[text], completion_ids=[ids])
    assert score == pytest.approx([logit(model, tokenizer, text)], abs=1e-5)


def test_a_tokenizer_of_another_model_is_refused():
    model = tiny_classifier(tiny_tokenizer(vocab_size=280), "llama")
    with pytest.raises(
        ValueError, match=r"gives ids up to 399, but the reward model has embeddings for ids up to 279"
    ):
        LearnedReward(model, tiny_tokenizer(vocab_size=400))


def test_a_model_needs_its_tokenizer():
    with pytest.raises(ValueError, match="give the tokenizer as processing_class"):
        LearnedReward(tiny_classifier(tiny_tokenizer("bert")))


def test_no_model_where_the_path_points():
    with pytest.raises(FileNotFoundError, match=r"No model at './nowhere'"):
        LearnedReward("./nowhere")


def test_pad_is_never_eos():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_classifier(tokenizer, "llama")
    settings = RewardModelSettings(append_eos=True)
    reward = LearnedReward(model, tokenizer, settings=settings)
    pad = tiny_tokenizer("llama").pad_token_id
    assert model.config.pad_token_id == pad
    # With pad = eos the head would read the token before the end.
    assert reward(["good"], [""]) == pytest.approx([logit(model, tokenizer, "good<eos>")], abs=1e-5)
    assert reward(["good"], [""]) != pytest.approx([logit(model, tokenizer, "good")], abs=1e-2)


def test_a_conversation_is_read_through_the_models_chat_template():
    tokenizer = tiny_tokenizer("llama", chat_template=True)
    model = tiny_classifier(tokenizer, "llama")
    prompt = [{"role": "user", "content": "Was it good?"}]
    completion = [{"role": "assistant", "content": "yes"}]
    expected = logit(model, tokenizer, "<|user|>Was it good?<|assistant|>yes<eos>", add_special_tokens=False)
    for append_eos in (False, True):  # the template ends its turns itself
        reward = LearnedReward(model, tokenizer, settings=RewardModelSettings(append_eos=append_eos))
        assert reward([prompt], [completion]) == pytest.approx([expected], abs=1e-5)
    assert reward([prompt], ["yes"]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_chat_template_a_conversation_is_read_as_the_text_of_a_dialogue(kind, caplog):
    say_plain_reading.cache_clear()
    reward = reward_of(kind, name="judge", settings=RewardModelSettings(append_eos=kind == "llama"))
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Was it good?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "ask"}]}
    completion = [call, {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "Yes."}]
    asked = "\n\nSystem: Be brief.\n\nHuman: Was it good?"
    text = asked + '\n\nAssistant: [{"name": "ask"}]\n\nTool: yes\n\nAssistant: Yes.'
    with caplog.at_level(logging.WARNING):
        said = [reward([prompt], [completion]) for _ in range(2)]
    assert said == [reward([""], [text])] * 2
    assert reward([prompt], ["Yes."]) == reward([""], [f"{asked}\n\nAssistant: Yes."])
    assert caplog.text.count("'judge' has no chat template, so that conversations are read as plain text") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_blank_texts_have_a_score(kind):
    scores = reward_of(kind)(["", "", " ", "The film"], ["", "\n", "", ""])
    assert len(scores) == 4
    assert all(isinstance(score, float) for score in scores)
    assert reward_of(kind)([], []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_loses_its_beginning_and_says_so_once(kind, caplog):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind)
    length = 5 if kind == "bert" else 3  # " nobody could" is three tokens, and [CLS] and [SEP] stay
    reward = LearnedReward(model, tokenizer, max_length=length)
    with caplog.at_level(logging.WARNING):
        scores = reward(["It was good, but", "Once more,", ""], [" nobody could"] * 3)
        reward(["It was good, but"], [" nobody could"])
    assert scores == pytest.approx([logit(model, tokenizer, " nobody could")] * 3, abs=1e-5)
    assert reward.truncated == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"2 of 3 texts are longer than its max_length of {length} tokens" in caplog.text


def test_a_text_longer_than_the_model_can_read_is_cut():
    reward = reward_of("bert")
    assert reward.max_length == 256
    assert len(reward(["x" * 3000], [" good"])) == 1
    with pytest.raises(ValueError, match="max_length is 300, but must be from 1 to 256"):
        reward_of("bert", max_length=300)


def test_settings_are_read_from_the_folder(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_classifier(tokenizer, "llama")
    folder = save_tiny(tmp_path / "reward", model, tokenizer)
    calibration = LogisticCalibration(scale=0.5, offset=-1.0, low=-4.0, high=4.0)
    RewardModelSettings(calibration, append_eos=True, max_length=9).save(folder)
    assert json.loads((folder / "reward_config.json").read_text()) == {
        "calibration": {"kind": "logistic", "scale": 0.5, "offset": -1.0, "low": -4.0, "high": 4.0},
        "append_eos": True,
        "max_length": 9,
    }
    x = logit(model, tokenizer, "The film<eos>")
    reward = LearnedReward(folder)
    assert reward.max_length == 9
    rating = -4.0 + 8.0 * torch.sigmoid(torch.tensor(0.5 * x - 1.0)).item()
    assert reward(["The"], [" film"]) == pytest.approx([rating], abs=1e-5)
    assert LearnedReward(folder, calibrate=False)(["The"], [" film"]) == pytest.approx([x], abs=1e-5)
    assert LearnedReward(folder, calibrate=False)(["The"], [" film<eos>"]) == pytest.approx([x], abs=1e-5)
    assert LearnedReward(folder, max_length=7).max_length == 7


def test_a_folder_without_settings_has_the_defaults(tmp_path):
    expected = RewardModelSettings(calibration=None, append_eos=False, max_length=None)
    assert RewardModelSettings.load(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"append_oes": true}', "unknown append_oes; known are calibration, append_eos, max_length"),
        ('{"append_eos": "yes"}', "append_eos must be true or false, not 'yes'"),
        ('{"calibration": {"kind": "spline"}}', "of kind 'spline'; known are logistic, linear, ordinal"),
        ('{"calibration": {"kind": "logistic", "slope": 1}}', "unknown slope; known are scale, offset, low, high"),
        ('{"calibration": {"kind": "logistic", "scale": 1}}', "offset"),
        ("[1]", "reward_config.json"),
        ("{", "reward_config.json"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path, text, words):
    (tmp_path / "reward_config.json").write_text(text)
    with pytest.raises(ValueError, match="Cannot read the reward model's settings in ") as caught:
        RewardModelSettings.load(tmp_path)
    assert words in str(caught.value)


def test_append_eos_needs_an_end_of_sequence_token():
    with pytest.raises(ValueError, match="append_eos, but the tokenizer has no end-of-sequence token"):
        reward_of("bert", settings=RewardModelSettings(append_eos=True))


def test_of_several_labels_one_is_chosen():
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer, num_labels=2, id2label={0: "bad", 1: "good"})
    with torch.no_grad():
        bad, good = model(**tokenizer("The film is good.", return_tensors="pt")).logits[0].tolist()
    row = (["The film is"], [" good."])
    assert LearnedReward(model, tokenizer, label="good")(*row) == pytest.approx([good], abs=1e-5)
    assert LearnedReward(model, tokenizer, label=1)(*row) == pytest.approx([good], abs=1e-5)
    assert LearnedReward(model, tokenizer, label=0)(*row) == pytest.approx([bad], abs=1e-5)
    with pytest.raises(ValueError, match="has 2 labels, bad, good: say which is the reward by label"):
        LearnedReward(model, tokenizer)
    for label in ("best", 2, -1):
        with pytest.raises(ValueError, match=rf"has no label {label!r}. It has bad, good \(0 to 1\)"):
            LearnedReward(model, tokenizer, label=label)


THREE = {0: "negative", 1: "neutral", 2: "positive"}


def three_labels(**config):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer, num_labels=3, id2label=THREE, **config)
    with torch.no_grad():
        return model, tokenizer, model(**tokenizer("The film is good.", return_tensors="pt")).logits[0]


def test_labels_are_weighed_by_name_or_index():
    model, tokenizer, (negative, neutral, positive) = three_labels()
    row = (["The film is"], [" good."])
    by_name = LearnedReward(model, tokenizer, labels={"positive": 1.0, "negative": -1.0})
    assert by_name(*row) == pytest.approx([(positive - negative).item()], abs=1e-5)
    by_index = LearnedReward(model, tokenizer, labels={2: 0.5, 1: 2})
    assert by_index(*row) == pytest.approx([(0.5 * positive + 2 * neutral).item()], abs=1e-5)


def test_logits_become_probabilities_over_all_labels():
    model, tokenizer, logits = three_labels()
    row = (["The film is"], [" good."])
    odds = torch.exp(logits.double())
    p = (odds / odds.sum()).tolist()
    assert LearnedReward(model, tokenizer, label="positive", probabilities=True)(*row) == pytest.approx([p[2]])
    weighed = LearnedReward(model, tokenizer, labels={"positive": 1.0, "negative": -1.0}, probabilities=True)
    assert weighed(*row) == pytest.approx([p[2] - p[0]], abs=1e-6)


def test_one_label_and_labels_apart_have_a_probability_each():
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    x = logit(model, tokenizer, "The film is good.")
    row = (["The film is"], [" good."])
    assert LearnedReward(model, tokenizer, probabilities=True)(*row) == pytest.approx([1 / (1 + 2.718281828**-x)])
    model, tokenizer, logits = three_labels(problem_type="multi_label_classification")
    positive = 1 / (1 + 2.718281828 ** -logits[2].item())
    reward = LearnedReward(model, tokenizer, label="positive", probabilities=True)
    assert reward(*row) == pytest.approx([positive])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": {"positive": 1.0}, "label": "positive"}, r"Give label \('positive'\).*or labels .*, not both"),
        ({"labels": {}}, "labels is empty"),
        ({"labels": {"good": 1.0}}, r"no label 'good'. It has negative, neutral, positive \(0 to 2\)"),
        ({"labels": {"positive": float("nan")}}, "weight of label 'positive' is nan"),
        ({"labels": {"positive": "1"}}, "weight of label 'positive' is '1'"),
        ({"probabilities": True}, "say which is the reward by label"),
        ({"label": 0, "dtype": "bfloat16"}, "load_in_4bit and dtype come too late"),
    ],
)
def test_labels_that_cannot_be_weighed_are_refused(settings, words):
    model, tokenizer, _ = three_labels()
    with pytest.raises(ValueError, match=words):
        LearnedReward(model, tokenizer, **settings)


def test_a_calibration_is_that_of_one_logit():
    settings = RewardModelSettings(LogisticCalibration(scale=0.5, offset=-1.0, low=-4.0, high=4.0))
    for asked in ({"probabilities": True}, {"labels": {0: 1.0}}):
        with pytest.raises(ValueError, match="holds a calibration, which makes ratings of one logit"):
            reward_of("bert", settings=settings, **asked)
        reward_of("bert", settings=settings, calibrate=False, **asked)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_model_that_gives_no_number_is_an_error_that_names_the_row(number):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    broken = tokenizer("!", add_special_tokens=False).input_ids[0]
    torch.nn.init.constant_(model.bert.embeddings.word_embeddings.weight[broken], float(number))
    calibration = LogisticCalibration(scale=0.5, offset=-1.0, low=-4.0, high=4.0)  # would turn inf into 4
    for settings in (None, RewardModelSettings(calibration)):
        reward = LearnedReward(model, tokenizer, name="judge", settings=settings)
        with pytest.raises(RewardError, match=r"model of reward 'judge' gave \w+, for row 3 \(prompt 'What a', compl"):
            reward(PROMPTS, COMPLETIONS)


def test_a_template_that_writes_the_beginning_of_sequence_gets_no_second_one():
    tokenizer = tiny_tokenizer("llama", chat_template=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    model = tiny_classifier(tokenizer, "llama")
    once = "<bos><|user|>Was it good?<|assistant|>yes<eos>"
    ids = tokenizer(once, add_special_tokens=False).input_ids
    assert tokenizer(once).input_ids == [tokenizer.bos_token_id, *ids]  # what must not be read
    expected = logit(model, tokenizer, once, add_special_tokens=False)
    score = LearnedReward(model, tokenizer)([[{"role": "user", "content": "Was it good?"}]], ["yes"])
    assert score == pytest.approx([expected], abs=1e-5)


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_4_bit_keeps_its_head_and_gives_the_same_alone_and_in_a_batch(kind, tmp_path):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind, hidden_size=64)
    folder = save_tiny(tmp_path / "reward", model, tokenizer)
    reward = LearnedReward(folder, load_in_4bit=True)
    quantized = {name for name, module in reward.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantized
    assert not any("score" in name or "classifier" in name for name in quantized)
    alone = [reward([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(alone, abs=1e-5)
    exact = LearnedReward(folder)(PROMPTS, COMPLETIONS)
    assert alone != pytest.approx(exact, abs=1e-5)  # it is another model
    assert torch.corrcoef(torch.tensor([alone, exact]))[0, 1] > 0.5  # and not a strange one


def test_it_is_weighed_in_a_sum():
    expected = reward_of("bert")(PROMPTS, COMPLETIONS)
    total = WeightedSum([reward_of("bert")], [-2.0])(PROMPTS, COMPLETIONS, [[1]] * 4)
    assert total == pytest.approx([-2 * score for score in expected], abs=1e-5)


def test_any_text_has_a_score():
    reward = reward_of("bert")
    texts = ["...", "今天 is 😀 день", "\u200b", "x " * 10_000, "\x00"]
    scores = reward([""] * 5, texts)
    assert scores == pytest.approx([reward([""], [text])[0] for text in texts], abs=1e-5)


def test_dropout_is_off_while_scoring_and_the_mode_is_given_back():
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer, hidden_dropout_prob=0.5)
    reward = LearnedReward(model, tokenizer)
    expected = reward(PROMPTS, COMPLETIONS)
    model.train()
    assert reward(PROMPTS, COMPLETIONS) == expected
    assert model.training


def test_no_gradient_is_kept():
    reward = reward_of("llama")
    reward(PROMPTS, COMPLETIONS)
    assert all(parameter.grad is None for parameter in reward.model.parameters())


def test_half_precision_is_kept_and_gives_numbers(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "reward", tiny_classifier(tokenizer), tokenizer)
    reward = LearnedReward(folder, dtype="bfloat16", device="cpu")
    assert reward.model.dtype == torch.bfloat16
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(LearnedReward(folder)(PROMPTS, COMPLETIONS), abs=0.3)


def test_it_survives_pickling_and_the_pickle_of_a_path_is_small(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "reward", tiny_classifier(tokenizer), tokenizer)
    reward = LearnedReward(str(folder), batch_size=2, name="judge", labels={0: 2.0}, probabilities=True)
    pickled = pickle.dumps(reward)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again.__name__, again.batch_size) == ("judge", 2)
    assert again(PROMPTS, COMPLETIONS) == pytest.approx(reward(PROMPTS, COMPLETIONS), abs=1e-6)


def test_a_batch_holds_at_least_one_text():
    with pytest.raises(ValueError, match="batch_size is 0; it must be 1 or more"):
        reward_of("bert", batch_size=0)


@pytest.mark.parametrize("kind", ["llama3", "llama2", "gemma"])
def test_text_that_a_template_has_rendered_begins_once(kind):
    tokenizer = base_tokenizer(kind)
    tokenizer.pad_token = tokenizer.pad_token or BASES[kind].pads
    model, seen = tiny_classifier(tokenizer, kind="llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    talk = [{"role": "user", "content": "Good?"}]
    rendered = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    reward = LearnedReward(model, processing_class=tokenizer)
    of_text = reward(prompts=[rendered], completions=["yes" + tokenizer.eos_token])
    of_messages = reward(prompts=[talk], completions=[[{"role": "assistant", "content": "yes"}]])
    assert of_text == of_messages
    assert all((ids == tokenizer.bos_token_id).sum() == 1 for ids in seen)


def test_options_of_the_template_come_from_the_settings_and_from_each_row(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = "{{ 'deep ' if think else 'quick ' }}" + CHAT_TEMPLATE
    model = tiny_classifier(tokenizer, kind="llama")
    settings = RewardModelSettings(chat_template_kwargs={"think": True})
    settings.save(tmp_path)
    assert RewardModelSettings.load(tmp_path) == settings
    reward = LearnedReward(model, processing_class=tokenizer, settings=settings)
    asked, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    own = [{"think": False}, None, {"other": 1}]
    texts = ["quick <|user|>a<|assistant|>b<eos>", *["deep <|user|>a<|assistant|>b<eos>"] * 2]
    expected = [logit(model, tokenizer, text, add_special_tokens=False) for text in texts]
    assert reward([asked] * 3, [answer] * 3, chat_template_kwargs=own) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_an_answer_that_the_prompt_begins_is_read_as_one_message():
    tokenizer = tiny_tokenizer("llama", chat_template=True)
    model = tiny_classifier(tokenizer, kind="llama")
    reward = LearnedReward(model, processing_class=tokenizer)
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Well, "}]
    expected = logit(model, tokenizer, "<|user|>a<|assistant|>Well, yes<eos>", add_special_tokens=False)
    scores = reward(prompts=[prompt], completions=[[{"role": "assistant", "content": "yes"}]])
    assert scores == pytest.approx([expected], abs=1e-5)
