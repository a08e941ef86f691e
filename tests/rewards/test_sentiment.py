import pickle
import random
import subprocess
import sys
import time

import pytest
import torch

from rlhf_recipes.rewards import RewardError, SentimentClassifier, Vader, WeightedSum
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

# The examples of VADER's own README.
SMART = "VADER is smart, handsome, and funny."
NOT_SMART = "VADER is not smart, handsome, nor funny."

PROMPTS = ["The film is", "A dull script", "It was bad, but", ""]
COMPLETIONS = [
    " good.",
    " and a tired cast make this a long evening for all of us.",
    " the music was great 😀",
    "静か",
]
LABELS = {0: "NEG", 1: "neutral", 2: "POS"}


def test_vader_gives_the_compound_score_of_its_readme():
    rewards = Vader()(prompts=["", ""], completions=[SMART, NOT_SMART])
    assert rewards == pytest.approx([0.8316, -0.7424], abs=1e-4)


def test_the_prompt_counts_unless_told_otherwise():
    split = {"prompts": ["VADER is smart,"], "completions": [" handsome, and funny."]}
    assert Vader()(**split) == pytest.approx([0.8316], abs=1e-4)
    assert Vader(completion_only=True)(prompts=[SMART], completions=[" It is."]) == [0.0]


def test_a_text_that_vader_cannot_read_has_no_feeling_and_one_with_nothing_to_see_is_the_worst():
    assert Vader()(prompts=[""] * 4, completions=["...", "静かな映画。", "Тихий фильм", "1995"]) == [0.0] * 4
    assert Vader()(prompts=[""] * 3, completions=["", "\n", "\u200b"]) == [-1.0] * 3
    # Emoticons and emoji of its lexicon count in any language.
    readable = Vader()(prompts=[""] * 4, completions=["a film", "ein Film", "映画 :)", "映画 😍"])
    assert readable[:2] == [0.0, 0.0]
    assert min(readable[2:]) > 0.4
    assert Vader()(prompts=["A film."], completions=[""]) == [0.0]


def test_vader_reads_messages():
    prompt, completion = [{"role": "user", "content": "Well?"}], [{"role": "assistant", "content": SMART}]
    assert Vader(completion_only=True)(prompts=[prompt], completions=[completion]) == pytest.approx([0.8316], abs=1e-4)
    assert Vader()(prompts=[prompt], completions=[completion])[0] > 0.8


def test_vader_here_is_vader_and_a_long_text_takes_no_longer_by_the_word():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    original, here = SentimentIntensityAnalyzer(), Vader()
    known = "least at never so this without doubt kind of but no not isn't very VERY good bad GREAT the bomb :) film !"
    dice = random.Random(0)
    texts = [" ".join(dice.choices(known.split(), k=length)) for length in range(1, 60)]
    assert here([""] * len(texts), texts) == [original.polarity_scores(text)["compound"] for text in texts]
    begin = time.process_time()
    assert here([""], ["great film " * 5000]) == [1.0]
    assert time.process_time() - begin < 3  # it was 7


def test_vader_has_a_name_and_survives_pickling():
    reward = pickle.loads(pickle.dumps(Vader(name="lexicon")))
    assert reward == Vader(name="lexicon")
    assert reward.__name__ == "lexicon"


def test_vader_does_not_wait_for_torch():
    code = "import sys; from rlhf_recipes.rewards import Vader; Vader()([''], ['good']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def classifier(labels=LABELS, kind="bert", **config):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind, num_labels=len(labels), **config)
    model.config.id2label, model.config.label2id = labels, {name: index for index, name in labels.items()}
    return model, tokenizer


def probabilities(model, tokenizer, text):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(dim=0).tolist()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_reward_is_the_probability_of_positive_minus_that_of_negative(kind):
    model, tokenizer = classifier(kind=kind)
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        negative, _, positive = probabilities(model, tokenizer, prompt + completion)
        expected.append(positive - negative)
    assert max(expected) - min(expected) > 0.1
    for batch_size in (1, 3):
        reward = SentimentClassifier(model, processing_class=tokenizer, batch_size=batch_size)
        assert reward(PROMPTS, COMPLETIONS, completion_ids=[[1]] * 4) == pytest.approx(expected, abs=1e-5)


def test_labels_have_the_weights_that_are_asked_for():
    model, tokenizer = classifier()
    text = "A quiet film"
    negative, neutral, positive = probabilities(model, tokenizer, text)
    for settings, expected in (
        ({"positive": "neutral", "negative": 2}, neutral - positive),
        ({"positive": "neutral"}, neutral - negative),
        ({"weights": {"NEG": -1, 1: 0.5, "POS": 2}}, -negative + 0.5 * neutral + 2 * positive),
    ):
        reward = SentimentClassifier(model, processing_class=tokenizer, **settings)
        assert reward([""], [text]) == pytest.approx([expected], abs=1e-5)


def test_the_classifier_reads_the_prompt_unless_told_otherwise():
    model, tokenizer = classifier()
    both, alone = (
        SentimentClassifier(model, processing_class=tokenizer, completion_only=only) for only in (False, True)
    )
    assert alone([SMART], [" It is."]) == alone([""], [" It is."]) == pytest.approx(both([""], [" It is."]))
    assert both([SMART], [" It is."])[0] != pytest.approx(both([""], [" It is."])[0], abs=1e-3)
    prompt, completion = [{"role": "user", "content": "Well?"}], [{"role": "assistant", "content": SMART}]
    assert both([prompt], [completion]) == pytest.approx(both([""], [f"Well?\n{SMART}"]))
    assert alone([prompt], [completion]) == pytest.approx(both([""], [SMART]))


def test_a_blank_text_has_the_lowest_sentiment_and_a_long_one_is_cut():
    model, tokenizer = classifier()
    reward = SentimentClassifier(model, processing_class=tokenizer, completion_only=True)
    values = reward(["x"] * 5, ["", " \n", "...", "😀", "good film " * 5000])
    assert values[:2] == [-1.0, -1.0]
    assert all(-1 <= value <= 1 for value in values[2:])


def test_a_model_that_gives_nan_is_named():
    model, tokenizer = classifier()
    model.classifier.weight.data[0] = float("nan")
    with pytest.raises(RewardError, match="reward 'mood' gave nan"):
        SentimentClassifier(model, processing_class=tokenizer, name="mood")([""], ["good"])


def test_a_saved_classifier_survives_pickling_and_adds_up(tmp_path):
    folder = save_tiny(tmp_path / "mood", *classifier())
    reward = SentimentClassifier(folder, completion_only=True, device="cpu")
    values = reward(PROMPTS, COMPLETIONS)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS) == values
    total = WeightedSum([reward], weights=[2.0])
    assert total(PROMPTS, COMPLETIONS, [[1]] * 4) == pytest.approx([2 * value for value in values])
    alone = [reward([prompt], [text])[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert values == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, {}, "labels are LABEL_0, LABEL_1, of which 0 begin with 'pos'"),
        ({0: "positive", 1: "possibly", 2: "negative"}, {}, "of which 2 begin with 'pos': say by positive which one"),
        ({0: "only"}, {}, "The model has one label, only"),
        (LABELS, {"positive": "GOOD"}, "no label 'GOOD'"),
        (LABELS, {"positive": "POS", "negative": "POS"}, "weighs one label alone"),
        (LABELS, {"weights": {"POS": 1}}, "weighs one label alone"),
        (LABELS, {"weights": {"POS": 1, "NEG": 0}, "positive": "POS"}, "Give either"),
        (LABELS, {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_labels_that_cannot_be_weighed_are_refused(labels, settings, words):
    model, tokenizer = classifier(labels)
    with pytest.raises(ValueError, match=words):
        SentimentClassifier(model, processing_class=tokenizer, **settings)
