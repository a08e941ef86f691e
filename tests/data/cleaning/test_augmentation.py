"""Rows that are added or turned round depend on their texts and the seed alone."""

import pytest

from rlhf_recipes.data.cleaning.edits import SwapPairs, WordDropout
from rlhf_recipes.data.cleaning.filters import Counts
from tests.data.feedback_examples import rows

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def test_a_swap_turns_the_soft_label_too():
    dataset = rows(chosen=["a"], rejected=["b"], target=[0.75], margin=[2.0], id=[1])
    new, counts = SwapPairs(share=1.0)(dataset)
    assert new.to_list() == [{"chosen": "b", "rejected": "a", "target": 0.25, "margin": -2.0, "id": 1}]
    assert counts == Counts(1, 1, 1)
    votes = rows(chosen=["a"], rejected=["b"], chosen_votes=[3], rejected_votes=[1])
    assert SwapPairs(share=1.0)(votes)[0].to_list() == [
        {"chosen": "b", "rejected": "a", "chosen_votes": 1, "rejected_votes": 3}
    ]
    with pytest.raises(ValueError, match="soft label needs the columns 'chosen' and 'rejected' and 'target', or"):
        SwapPairs()(rows(chosen=["a"], rejected=["b"]))
    with pytest.raises(ValueError, match="share of pairs to swap is 2"):
        SwapPairs(share=2)


def test_half_of_the_pairs_are_swapped_over_batches_and_by_their_texts():
    count = 2500  # more than two batches
    dataset = rows(
        chosen=[f"good {n}" for n in range(count)],
        rejected=[f"bad {n}" for n in range(count)],
        target=[1.0] * count,
    )
    new, counts = SwapPairs()(dataset)
    swapped = [text.startswith("bad") for text in new["chosen"]]
    assert counts.changed == sum(swapped) == pytest.approx(count / 2, rel=0.1)
    assert new["target"][:] == [0.0 if each else 1.0 for each in swapped]
    last, _ = SwapPairs()(dataset.select([count - 1]))
    assert last[0] == new[count - 1]


def test_word_dropout_adds_copies_that_lack_words():
    dataset = rows(prompt=["Is it good?", "Is it good?"], completion=[f" {SENTENCE}", "Yes"], score=[1.0, 2.0])
    new, counts = WordDropout(0.3)(dataset)
    assert new.select([0, 1]).to_list() == dataset.to_list()
    assert counts == Counts(2, 3, 0, {"copies like their row, not added": 1})  # of one word the one stays
    copy = new[2]
    left, words = copy["completion"].split(), iter(SENTENCE.split())
    assert len(left) < len(SENTENCE.split())
    assert all(word in words for word in left)  # in their order
    assert (copy["prompt"], copy["score"], copy["completion"][0]) == ("Is it good?", 1.0, " ")
    assert WordDropout(0.3)(dataset.select([1, 0]))[0]["completion"][2] == copy["completion"]
    assert WordDropout(0.3, seed=1)(dataset)[0]["completion"][2] != copy["completion"]


def test_word_dropout_reaches_messages():
    dataset = rows(
        chosen=[[{"role": "assistant", "content": SENTENCE}]], rejected=[[{"role": "assistant", "content": "No"}]]
    )
    new, _ = WordDropout(0.3)(dataset)
    assert len(new) == 2
    assert len(new[1]["chosen"][0]["content"]) < len(SENTENCE)
    assert new[1]["rejected"] == dataset[0]["rejected"]
