"""Copies, exact and near, of one another and of held-out rows; groups that stay together."""

import pytest

from rlhf_recipes.data.cleaning.duplicates import Deduplicate, Leakage, NearDuplicates, split_by_group
from rlhf_recipes.data.cleaning.filters import Counts
from tests.data.feedback_examples import rows

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def test_exact_copies_go_but_the_first_and_disagreement_is_counted():
    dataset = rows(completion=["A &amp; b", "c", "a  & B", "A & b"], score=[1.0, 2.0, 1.0, 3.0])
    new, counts = Deduplicate()(dataset)
    assert new["score"][:] == [1.0, 2.0]
    assert counts == Counts(4, 2, 0, {"copies with other feedback": 1})
    by_prompt = rows(prompt=["p", "P ", "q"], completion=["a", "b", "c"])
    assert len(Deduplicate()(by_prompt)[0]) == 3
    assert Deduplicate(("prompt",))(by_prompt)[0]["completion"][:] == ["a", "c"]
    assert len(Deduplicate(("id",))(rows(completion=["a", "b"], id=[7, 7]))[0]) == 1


def jaccard(one, other, size=5):
    """Worked out on the plain text, which is in lower case already."""
    first, second = ({text[start : start + size] for start in range(len(text) - size + 1)} for text in (one, other))
    return len(first & second) / len(first | second)


def test_near_copies_are_those_with_the_similarity_asked_for():
    text = "the film was better than its poster and the actors knew it from the start"
    near, far = text.replace("start", "stars"), text.replace("poster", "trailer").replace("actors", "writers")
    # 73 characters have 69 shingles, " the " twice; of the 68 one differs, and its new one is added
    assert jaccard(text, near) == pytest.approx(67 / 69)
    assert jaccard(text, far) < 0.7
    dataset = rows(completion=[text, far, near, text.upper()], score=[1, 2, 1, 5])
    new, counts = NearDuplicates(0.8)(dataset)
    assert new["completion"][:] == [text, far]
    assert counts == Counts(4, 2, 0, {"copies with other feedback": 1})
    assert NearDuplicates(0.98)(dataset)[1].after == 3
    assert NearDuplicates(1.0)(dataset)[0]["completion"][:] == [text, far, near]


def test_answers_to_one_long_prompt_are_no_copies_of_each_other():
    dataset = rows(prompt=[SENTENCE * 5] * 2, completion=["Yes, of course.", "I do not think so."])
    assert len(NearDuplicates(0.8)(dataset)[0]) == 2
    copies = rows(prompt=[SENTENCE, SENTENCE], completion=["Yes, of course.", "yes,  of course."])
    assert len(NearDuplicates(0.8)(copies)[0]) == 1


def test_near_copies_do_not_depend_on_the_run_and_short_texts_work():
    dataset = rows(
        completion=[f"{word} is {number}" for number in range(5) for word in ("This film", "That book", "")]
    )
    once = NearDuplicates(0.6)(dataset)[0].to_list()
    assert once == NearDuplicates(0.6)(dataset)[0].to_list()
    assert len(once) < 15
    assert len(NearDuplicates(0.8)(rows(completion=["", "", "a", "b", "\U0001f600", "\u4f60\u597d"]))[0]) == 5


def test_what_is_held_out_is_taken_out_of_the_training_rows():
    held_out = rows(completion=["A fine film.", SENTENCE, "Never met."])
    train = rows(completion=["a  fine FILM.", "Another film.", SENTENCE.replace("poster", "posters"), "A fine film."])
    new, counts = Leakage(held_out)(train)
    assert new["completion"][:] == [train[1]["completion"], train[2]["completion"]]
    assert counts.notes == {"exact copies": 2, "near copies": 0, "held-out texts met": 1}
    new, counts = Leakage(held_out, threshold=0.8)(train)
    assert new["completion"][:] == ["Another film."]
    assert counts == Counts(4, 1, 0, {"exact copies": 2, "near copies": 1, "held-out texts met": 2})


def test_rows_about_a_held_out_prompt_can_be_taken_out():
    held_out, train = rows(prompt=["p"], completion=["a"]), rows(prompt=["p", "q"], completion=["b", "a"])
    assert len(Leakage(held_out)(train)[0]) == 2
    assert Leakage(held_out, columns=("prompt",))(train)[0]["prompt"][:] == ["q"]
    with pytest.raises(ValueError, match="leaks in the held-out rows needs the columns 'prompt'"):
        Leakage(rows(completion=["a"]))(train)


def test_groups_are_on_one_side_whatever_the_order():
    groups = [f"author {number % 40}" for number in range(200)]
    dataset = rows(completion=[str(number) for number in range(200)], author=groups)
    parts, counts = split_by_group(dataset, "author")
    sides = {name: set(part["author"]) for name, part in parts.items()}
    assert sum(map(len, parts.values())) == 200
    assert sum(map(len, sides.values())) == len(set(groups)) == 40
    assert counts.notes["train"] == f"{len(parts['train'])} rows of {len(sides['train'])} groups"
    backwards, _ = split_by_group(dataset.select(range(199, -1, -1)), "author")
    assert set(backwards["test"]["author"]) == sides["test"]


def test_groups_may_be_numbers_or_messages_and_not_missing():
    dataset = rows(completion=["a", "b"], prompt=[[{"role": "user", "content": "q"}]] * 2, id=[7, None])
    parts, _ = split_by_group(dataset, "prompt", {"train": 0.5, "test": 0.5})
    assert sorted(map(len, parts.values())) == [0, 2]
    with pytest.raises(ValueError, match="Row 1 has no 'id'"):
        split_by_group(dataset, "id")
    with pytest.raises(ValueError, match="A split by groups needs the columns 'topic'"):
        split_by_group(dataset, "topic")
