import pickle
import random

import pytest
from sacrebleu.metrics import BLEU as SacreBLEU

from rlhf_recipes.rewards import EndsWithSentence, WeightedSum
from rlhf_recipes.rewards.diversity import DistinctN, NgramNovelty, SelfBLEU, siblings

ALL = [DistinctN(1), SelfBLEU(), NgramNovelty()]
ids = [reward.__name__ for reward in ALL]


def of_one_prompt(reward, *completions):
    size = len(completions)
    return reward(prompts=["The film is"] * size, completions=list(completions), completion_ids=[[]] * size)


def some_batch(prompts=6, size=4, seed=0):
    rng = random.Random(seed)
    vocabulary = ["a", "quiet", "film", "好", "看", "with", "Heart", ",", "!", "😀"]
    rows = [f"prompt {index}" for index in range(prompts) for _ in range(size)]
    return rows, [" ".join(rng.choices(vocabulary, k=rng.randint(0, 12))) for _ in rows]


# ---- siblings


def test_siblings_are_the_other_rows_of_the_prompt():
    assert siblings(["a", "b", "a", "c", "a"]) == [[2, 4], [], [0, 4], [], [0, 2]]
    assert siblings([]) == []


def test_messages_are_the_same_prompt_if_all_of_them_is_equal():
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "a"}
    assert siblings([[user], [system], [dict(user)], "a", "a"]) == [[2], [], [0], [4], [3]]
    assert siblings([[user, user], [{"role": "user", "content": "a\na"}]]) == [[], []]  # the same text


# ---- distinct-n


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so so so so", 1 / 3),
        ("a b a b", 2 / 3),
        ("A b, a B!", 2 / 3),
        ("a quiet film", 1.0),
        ("好看好看", 2 / 3),
        ("ดีมากดีมาก", 4 / 7),  # eight characters with their signs; three of the seven pairs come twice
        ("😀😀😀", 1 / 2),
        ("one", 1.0),
        ("", 0.0),
        (" ...", 0.0),
    ],
)
def test_distinct_bigrams(text, expected):
    assert of_one_prompt(DistinctN(), text) == pytest.approx([expected])


def test_distinct_words_and_long_texts():
    assert of_one_prompt(DistinctN(1), "so so so so", "so it goes") == [0.25, 1.0]
    assert of_one_prompt(DistinctN(1), "so it goes on " * 2_500) == [4 / 10_000]


# ---- self-BLEU


def test_self_bleu_by_hand():
    # Of two words one is in the sibling, of one pair none: 1 / (2 * 1). So BLEU = sqrt(1/2 * 1/2).
    assert of_one_prompt(SelfBLEU(), "a b", "a c") == pytest.approx([0.5, 0.5])
    assert of_one_prompt(SelfBLEU(), "a b", "A b.", "x y") == [0.0, 0.0, 1.0]
    assert of_one_prompt(SelfBLEU(), "今天很好", "今天很好") == [0.0, 0.0]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_self_bleu_is_one_minus_sacrebleus_with_the_siblings_as_references(n):
    theirs = SacreBLEU(tokenize="none", effective_order=True, max_ngram_order=n)
    rng = random.Random(n)
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(1, 15))) for _ in range(24)]
    for size in (2, 3, 8):
        prompts = [str(row // size) for row in range(24)]
        expected = [
            1 - theirs.sentence_score(text, [texts[other] for other in others]).score / 100
            for text, others in zip(texts, siblings(prompts), strict=True)
        ]
        assert SelfBLEU(n)(prompts=prompts, completions=texts) == pytest.approx(expected, abs=1e-9)


def test_one_more_repetition_of_a_text_is_not_more_diverse():
    spread = of_one_prompt(SelfBLEU(), "a b c d", "a b e f", "g h i j")
    collapsed = of_one_prompt(SelfBLEU(), "a b c d", "a b c d", "g h i j")
    assert sum(spread) > sum(collapsed)


# ---- novelty


def test_novelty_by_hand():
    # (a b) is in both, (b c) and (b d) in one each.
    assert of_one_prompt(NgramNovelty(), "a b c", "A b, d") == [0.5, 0.5]
    assert of_one_prompt(NgramNovelty(), "a b", "a b c d", "x y") == [0.0, 2 / 3, 1.0]
    assert of_one_prompt(NgramNovelty(1), "a b z z z z", "a b") == [1 / 3, 0.0]  # z counts once
    assert of_one_prompt(NgramNovelty(), "今天很好", "今天不好") == pytest.approx([2 / 3, 2 / 3])


def test_novelty_of_less_than_one_ngram():
    assert of_one_prompt(NgramNovelty(3), "a b", "x a b c", "b a") == [0.0, 1.0, 1.0]
    assert of_one_prompt(NgramNovelty(), "yes", "yes") == [0.0, 0.0]


# ---- both


@pytest.mark.parametrize("reward", [SelfBLEU(), NgramNovelty()], ids=["SelfBLEU", "NgramNovelty"])
def test_what_has_no_siblings_and_what_has_no_words(reward):
    assert reward(prompts=["a", "b"], completions=["same", "same"]) == [None, None]
    assert of_one_prompt(reward, "", "a b", "c d") == [0.0, 1.0, 1.0]
    assert of_one_prompt(reward, "...", "!!!", "a b") == [0.0, 0.0, 1.0]
    assert of_one_prompt(reward, "", "") == [0.0, 0.0]


@pytest.mark.parametrize("reward", [SelfBLEU(), NgramNovelty()], ids=["SelfBLEU", "NgramNovelty"])
def test_one_sibling_that_is_the_same_takes_all(reward):
    texts = ["👍 好 yes نعم", "👍 好 yes نعم", "no no no"]
    assert of_one_prompt(reward, *texts) == [0.0, 0.0, 1.0]
    long = "so it goes on " * 2_500
    assert of_one_prompt(reward, long, long) == [0.0, 0.0]


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_values_do_not_depend_on_rows_of_other_prompts_nor_on_the_order(reward):
    prompts, completions = some_batch()
    values = reward(prompts=prompts, completions=completions)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert len(set(values)) > 5
    for start in range(0, len(prompts), 4):
        rows = slice(start, start + 4)
        assert reward(prompts=prompts[rows], completions=completions[rows]) == values[rows]
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    shuffled = reward(prompts=[prompts[row] for row in order], completions=[completions[row] for row in order])
    assert shuffled == [values[row] for row in order]


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_messages_are_scored_as_their_text(reward):
    prompts, completions = some_batch()
    as_messages = reward(
        prompts=[[{"role": "user", "content": prompt}] for prompt in prompts],
        completions=[[{"role": "assistant", "content": text}] for text in completions],
    )
    assert as_messages == reward(prompts=prompts, completions=completions)


@pytest.mark.parametrize("kind", [DistinctN, SelfBLEU, NgramNovelty])
@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_n_must_be_a_number_of_words(kind, n):
    with pytest.raises(ValueError, match=f"n of {kind.__name__} is .*; it must be 1 or more, and a whole number"):
        kind(n)


def test_in_a_weighted_sum_and_pickled():
    rewards = [SelfBLEU(name="different"), NgramNovelty(1), DistinctN(1), EndsWithSentence()]
    reward = pickle.loads(pickle.dumps(WeightedSum(rewards, [1.0, 2.0, 4.0, 8.0])))
    assert reward.names == ("different", "NgramNovelty", "DistinctN", "EndsWithSentence")
    values = reward(
        prompts=["a", "a", "b"], completions=["x y.", "x x", "alone"], completion_ids=[[], [], []], source=["", "", ""]
    )
    # Row 0: BLEU sqrt(1/2 * 1/2), y is new, both words differ, a full stop. Row 1: its words are (1 of 2) there, its
    # pair is not; nothing is new; one word of two differs. Row 2 has no sibling.
    assert values == pytest.approx([0.5 + 2 * 0.5 + 4 + 8, 0.5 + 0.0 + 4 * 0.5, 4.0])
