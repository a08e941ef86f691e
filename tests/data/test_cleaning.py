"""Cleaning: each step on a few rows, what it counts, and that nothing depends on more than the rows and the seed."""

import json
import pickle
from itertools import pairwise

import pytest
from datasets import Dataset

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.data.cleaning import (
    BalanceLabels,
    CleaningArguments,
    Counts,
    Deduplicate,
    DropBlank,
    EditTexts,
    InLanguage,
    Leakage,
    Length,
    NearDuplicates,
    SwapPairs,
    Table,
    WithoutWords,
    WordDropout,
    read_stop_words,
    remove_punctuation,
    run,
    split_by_group,
    steps_from,
    tidy_light,
)
from rlhf_recipes.data.preprocessing import tidy_text

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def rows(**columns):
    return Dataset.from_dict(columns)


def names(steps):
    return [step.name for step in steps]


# --- The pipeline -----------------------------------------------------------------------------


def test_without_options_only_light_tidying_is_done():
    dataset = rows(prompt=["a\r\nb "], completion=[" C &amp; d\n\nE"], score=[1.0])
    new, table = run(steps_from(CleaningArguments()), dataset)
    assert new.to_list() == [{"prompt": "a\nb ", "completion": " C &amp; d\n\nE", "score": 1.0}]
    assert table.steps == [("tidy (light)", Counts(1, 1, changed=1)), ("blank", Counts(1, 1))]
    nothing, _ = run(steps_from(CleaningArguments(tidy="off")), dataset)
    assert nothing.to_list() == dataset.to_list()


def test_every_option_is_a_step_and_texts_are_changed_first(tmp_path):
    (tmp_path / "words.txt").write_text("the\n")
    args = CleaningArguments(
        tidy="full",
        lowercase=True,
        remove_punctuation=True,
        stop_words=str(tmp_path / "words.txt"),
        min_characters=2,
        language="en",
        deduplicate=True,
        near_duplicates=0.8,
        balance_labels=True,
        swap_pairs=True,
        word_dropout=0.1,
    )
    assert names(steps_from(args, held_out=rows(completion=["x"]))) == [
        "tidy (full)", "lower case", "punctuation", "stop words", "blank", "length", "language", "duplicates",
        "near duplicates", "leakage", "balance", "swap", "word dropout",
    ]  # fmt: skip


def test_the_options_parse_from_the_command_line():
    (args,) = RecipeParser(CleaningArguments).parse(["--deduplicate", "--near_duplicates", "0.9", "--tidy", "full"])
    assert (args.deduplicate, args.near_duplicates, args.tidy) == (True, 0.9, "full")


def test_the_table_as_text_and_as_json():
    table = Table([("length", Counts(10, 8, notes={"too short": 2})), ("word dropout", Counts(8, 16, changed=0))])
    assert str(table) == (
        "step          before  after  left out  added  changed  notes\n"
        "length            10      8         2      0        0  too short: 2\n"
        "word dropout       8     16         0      8        0"
    )
    assert json.loads(table.as_json())[0] == {
        "step": "length", "before": 10, "after": 8, "left_out": 2, "added": 0, "changed": 0, "notes": {"too short": 2},
    }  # fmt: skip


def test_every_row_is_accounted_for_and_a_step_of_ones_own_works():
    class Mine:
        name = "mine"

        def __call__(self, dataset):
            return dataset.select(range(3)), Counts(len(dataset), 3)

    dataset = rows(completion=["a", "b", "", "B", "c", "d"])
    steps = [*steps_from(CleaningArguments(lowercase=True, deduplicate=True)), Mine()]
    new, table = run(steps, dataset)
    counts = [each for _, each in table.steps]
    assert counts[0].before == 6
    assert all(one.after == other.before for one, other in pairwise(counts))
    assert counts[-1].after == len(new) == 3
    assert [each.after for each in counts] == [6, 6, 5, 4, 3]


def test_a_step_that_leaves_nothing_is_named_with_the_table():
    with pytest.raises(ValueError, match=r"The step 'length' leaves no row[\s\S]*too short: 2"):
        run([Length(5)], rows(completion=["a", "b"]))


def test_other_columns_are_kept_and_missing_text_columns_are_named():
    new, _ = run([Deduplicate()], rows(completion=["a", "a", "b"], id=[1, 2, 3]))
    assert new.to_list() == [{"completion": "a", "id": 1}, {"completion": "b", "id": 3}]
    with pytest.raises(ValueError, match="Cleaning needs the columns 'prompt', or 'completion'.*has: id"):
        run([Deduplicate()], rows(id=[1]))
    with pytest.raises(ValueError, match="Cleaning needs the columns 'topic'"):
        run([Deduplicate(("topic",))], rows(completion=["a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tidy": "most"}, "'off', 'light' or 'full'"),
        ({"min_characters": -1}, "min_characters is -1"),
        ({"min_characters": 5, "max_characters": 4}, "max_characters 4"),
        ({"max_characters": 0}, "max_characters 0"),
        ({"language": "xx"}, "does not know 'xx'"),
        ({"near_duplicates": 0.0}, "near_duplicates is 0.0; give a similarity above 0"),
        ({"near_duplicates": 1.5}, "near_duplicates is 1.5"),
        ({"word_dropout": 1.0}, "word_dropout is 1.0"),
        ({"stop_words": "nowhere.txt"}, "'nowhere.txt', which is no file"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CleaningArguments(**options)


# --- Changing texts ---------------------------------------------------------------------------


def test_light_tidying_touches_line_ends_accents_and_nul_alone():
    assert tidy_light("a\r\nb\rc\0 &amp;  d ") == "a\nb\nc &amp;  d "
    assert tidy_light("Cafe\u0301") == "Caf\u00e9"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Well-made, isn't it?Yes!", "Well-made isn't it Yes"),
        ("\u201cQuoted\u201d (or) \u00abnot\u00bb \u2026", "Quoted or not"),
        ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
        ("$5 + 5% of 3.5 \U0001f600", "$5 + 5 of 3 5 \U0001f600"),
        ("a -- b", "a b"),
        ("...", ""),
        ("", ""),
    ],
)
def test_punctuation_of_all_scripts_goes_and_words_stay_apart(text, without):
    assert remove_punctuation(text) == without


def test_stop_words_go_in_any_case_and_as_whole_words(tmp_path):
    (tmp_path / "words.txt").write_text("The\nof\n\n")
    edit = read_stop_words(str(tmp_path / "words.txt"))
    assert edit == WithoutWords(frozenset({"the", "of"}))
    assert edit("The theme of THE film.") == "theme film."
    assert edit("of the") == ""
    assert edit("the-best often") == "the-best often"
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_stop_words(str(tmp_path / "empty.txt"))


def test_the_english_stop_words_of_scikit_learn():
    pytest.importorskip("sklearn")
    edit = read_stop_words("english")
    assert len(edit.words) == 318
    assert edit("This is not the best film of the year") == "best film year"


def test_edits_reach_messages_lists_and_parts_and_count_rows():
    message = [{"role": "user", "content": "A"}, {"role": "assistant", "content": None}]
    dataset = rows(prompt=[message, message], completions=[["A", "b"], ["c", "d"]], id=["A", "A"])
    new, counts = EditTexts(str.lower, "lower", columns=("completions",))(dataset)
    assert (new["completions"][:], counts.changed) == ([["a", "b"], ["c", "d"]], 1)
    new, counts = EditTexts(str.lower, "lower")(dataset)
    assert new["prompt"][0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert (new["id"][:], counts.changed) == (["A", "A"], 2)
    parts = [[{"role": "user", "content": [{"type": "text", "text": "A"}]}]]
    new, _ = EditTexts(str.lower)(rows(prompt=parts))
    assert new["prompt"][0][0]["content"][0]["text"] == "a"


def test_white_space_between_a_prompt_and_its_answer_stays():
    dataset = rows(prompt=["The  sky is", "Q: "], completion=["\n  blue. ", "a "])
    new, _ = EditTexts(tidy_text)(dataset)
    assert new.to_list() == [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "Q: ", "completion": "a"}]
    alone, _ = EditTexts(tidy_text)(rows(completion=["  blue. "]))
    assert alone["completion"][:] == ["blue."]


def test_texts_that_an_edit_leaves_empty_are_counted_as_blank():
    dataset = rows(completion=["...", "fine", None])
    new, table = run(steps_from(CleaningArguments(remove_punctuation=True)), dataset)
    assert new["completion"][:] == ["fine"]
    assert dict(table.steps)["blank"] == Counts(3, 1)


# --- Leaving rows out -------------------------------------------------------------------------


def test_blank_answers_go_and_blank_prompts_stay():
    dataset = rows(prompt=["", "q", "q"], completions=[["a", "b"], ["a", " "], []])
    new, counts = DropBlank()(dataset)
    assert (len(new), counts.after) == (1, 1)
    assert new["prompt"][:] == [""]


def test_lengths_are_those_of_answers():
    dataset = rows(
        prompt=["a long prompt"] * 4, chosen=["a", "abc", "abc", "abcd"], rejected=["ab", "ab", "abcdef", "ab"]
    )
    new, counts = Length(2, 4)(dataset)
    assert new["chosen"][:] == ["abc", "abcd"]
    assert counts == Counts(4, 2, 0, {"too short": 1, "too long": 1})


def test_rows_in_another_language_go_and_short_ones_pass_counted():
    german = "Der Film war besser als sein Plakat, und die Schauspieler wussten es von Anfang an."
    new, counts = InLanguage("en")(rows(chosen=[SENTENCE, SENTENCE, "Yes."], rejected=[SENTENCE, german, "No."]))
    assert new["rejected"][:] == [SENTENCE, "No."]
    assert counts.notes == {"rows with a text too short to tell": 1}
    assert InLanguage("de")(rows(completion=[german, SENTENCE]))[0]["completion"][:] == [german]


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


def test_held_out_rows_are_changed_like_the_others_before_they_are_compared():
    steps = steps_from(CleaningArguments(remove_punctuation=True), held_out=rows(completion=["A fine film!"]))
    new, table = run(steps, rows(completion=["A fine, film", "Other"]))
    assert new["completion"][:] == ["Other"]
    assert dict(table.steps)["leakage"].notes["exact copies"] == 1


# --- Splits, labels, more rows ----------------------------------------------------------------


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


def test_labels_are_balanced_by_the_texts_and_not_by_their_order():
    dataset = rows(completion=[f"text {number}" for number in range(10)], label=[True] * 7 + [False] * 3)
    new, counts = BalanceLabels()(dataset)
    assert sorted(new["label"]) == [False] * 3 + [True] * 3
    assert counts == Counts(10, 6, 0, {"good before": 7, "bad before": 3})
    backwards, _ = BalanceLabels()(dataset.select(range(9, -1, -1)))
    assert set(backwards["completion"]) == set(new["completion"])
    assert any(set(BalanceLabels(seed)(dataset)[0]["completion"]) != set(new["completion"]) for seed in range(1, 9))
    with pytest.raises(ValueError, match="one class only"):
        BalanceLabels()(rows(completion=["a"], label=[0.7]))


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


@pytest.mark.parametrize(
    "step",
    [EditTexts(str.lower), DropBlank(), Length(2), InLanguage("en"), Deduplicate(), NearDuplicates(), BalanceLabels()],
    ids=lambda step: step.name,
)
def test_steps_can_be_pickled_and_do_the_same(step):
    dataset = rows(completion=[SENTENCE, "Yes.", SENTENCE, "a"], label=[1.0, 0.0, 1.0, 0.0])
    twin = pickle.loads(pickle.dumps(step))
    assert (twin(dataset)[0].to_list(), twin(dataset)[1]) == (step(dataset)[0].to_list(), step(dataset)[1])


def test_very_long_texts_pass():
    dataset = rows(completion=["word " * 10_000, "word " * 10_000, SENTENCE])
    args = CleaningArguments(tidy="full", remove_punctuation=True, near_duplicates=0.8)
    new, _ = run(steps_from(args), dataset)
    assert len(new) == 2
