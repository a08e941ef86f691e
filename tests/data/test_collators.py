import pytest
import torch

from rlhf_recipes.data.collators import PairCollator
from tests.tiny import tiny_tokenizer

ROWS = [
    {"chosen_ids": [11, 12, 13], "rejected_ids": [14, 15], "length": 3},
    {"chosen_ids": [16, 17], "rejected_ids": [18], "length": 2},
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer("llama")
    assert tokenizer.pad_token_id == 0
    return tokenizer


def test_chosen_texts_come_first_then_rejected_ones_padded_on_the_right(tokenizer):
    batch = PairCollator(tokenizer)(ROWS)
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].tolist() == [[11, 12, 13], [16, 17, 0], [14, 15, 0], [18, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long


def test_pad_to_multiple_of(tokenizer):
    batch = PairCollator(tokenizer, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 0], [16, 17, 0, 0], [14, 15, 0, 0], [18, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert PairCollator(tokenizer, pad_to_multiple_of=3)(ROWS)["input_ids"].shape == (4, 3)


def test_margins_are_kept(tokenizer):
    rows = [ROWS[0] | {"margin": 0.5}, ROWS[1] | {"margin": 2}]
    margin = PairCollator(tokenizer)(rows)["margin"]
    assert margin.tolist() == [0.5, 2.0]
    assert margin.dtype == torch.float32


def test_a_pad_token_within_a_text_is_text(tokenizer):
    batch = PairCollator(tokenizer)([{"chosen_ids": [11, 0, 12], "rejected_ids": [0]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_with_the_end_of_sequence_token_is_refused():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="The pad token is '<eos>' and the end-of-sequence token '<eos>'"):
        PairCollator(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="The pad token is None"):
        PairCollator(tokenizer)


def test_a_multiple_below_one_is_refused(tokenizer):
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0"):
        PairCollator(tokenizer, pad_to_multiple_of=0)
