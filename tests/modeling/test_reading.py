"""A very long text is cut before it is encoded, and reads as the whole text that is cut afterwards."""

import random
import time

import pytest

from rlhf_recipes.modeling.reading import part_to_read
from rlhf_recipes.rewards import LearnedReward
from tests.tiny import tiny_classifier, tiny_tokenizer

LIMIT = 32
TEXTS = {
    "words": " ".join(
        random.Random(0).choices(["the", "film", "is", "good", ";", "a", "plot,", "thin!", "1995", "\n\n"], k=20_000)
    ),
    "one word": "a" * 50_000,
    "without spaces": "静かな映画" * 10_000,
    "emoji": "👍🏽" * 5_000,
    "white space": "good film" + " " * 50_000,
    "line breaks": "good\n\n\n film" * 5_000,
    "short": "a good film",
    "empty": "",
}


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokens_that_are_read_are_those_of_the_whole_text(kind, text, side):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.truncation_side = side
    part = part_to_read(text, tokenizer, LIMIT, side)
    here, whole = (tokenizer(one, truncation=True, max_length=LIMIT).input_ids for one in (text[part], text))
    assert here == whole


def test_few_characters_of_a_long_text_are_encoded():
    part = part_to_read(TEXTS["words"], tiny_tokenizer("bert"), LIMIT)
    assert part.stop - part.start < 5_000 < len(TEXTS["words"]) == part.stop
    assert part_to_read(TEXTS["words"], tiny_tokenizer("bert"), None) == slice(0, len(TEXTS["words"]))


def test_ten_megabytes_are_scored_at_once():
    tokenizer = tiny_tokenizer("bert")
    reward = LearnedReward(tiny_classifier(tokenizer), tokenizer, max_length=LIMIT)
    text = "a good film " * 900_000
    begin = time.process_time()
    assert reward([""], [text]) == pytest.approx(reward([""], [text[-5000:]]), abs=1e-6)
    assert time.process_time() - begin < 5
    assert reward.truncated == 2
