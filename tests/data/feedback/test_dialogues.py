"""Dialogues as others write them, with every kind of feedback: literal rows in, literal rows out."""

import json

import pytest

from rlhf_recipes.data.feedback.dialogues import own_columns, split_dialogue
from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.data.loading import load_rows
from tests.data.feedback_examples import assistant, rows, user


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def loaded(folder, dataset):
    path = folder / "rows.json"
    path.write_text(json.dumps(dataset))
    return load_rows(str(path), "train")


def system(text):
    return {"role": "system", "content": text}


def says(who, text):
    return {"from": who, "value": text}


# --- A prompt, and two answers to it ----------------------------------------------------------

PROMPT = [user("1+1?"), assistant("2"), user("Sure?")]
PAIR = {"prompt": PROMPT, "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
TURNS = [says("human", "1+1?"), says("gpt", "2"), says("human", "Sure?")]
HEAD = "\n\nHuman: 1+1?\n\nAssistant: 2\n\nHuman: Sure?"

# How the prompt and the two answers are written, and the prompt that must come out.
PAIRS = {
    "ShareGPT": {
        "conversations": TURNS, "chosen": says("gpt", "Yes."), "rejected": says("gpt", "No."),
    },
    "ShareGPT, answers in lists": {
        "conversations": TURNS, "chosen": [says("gpt", "Yes.")], "rejected": [says("gpt", "No.")],
    },
    "ShareGPT, answers as texts": {"conversations": TURNS, "chosen": "Yes.", "rejected": "No."},
    "ShareGPT, prompt within the answers": {
        "chosen": [*TURNS, says("gpt", "Yes.")], "rejected": [*TURNS, says("gpt", "No.")],
    },
    "messages, answers as texts": {"messages": PROMPT, "chosen": "Yes.", "rejected": "No."},
    "messages, each answer one message": {
        "messages": PROMPT, "chosen": assistant("Yes."), "rejected": assistant("No."),
    },
    "messages that the answers hold too": {
        "messages": PROMPT, "chosen": [*PROMPT, assistant("Yes.")], "rejected": [*PROMPT, assistant("No.")],
    },
    "other names of who speaks": {
        "conversation": [{"role": "human", "content": "1+1?"}, {"role": "bot", "content": "2"},
                         {"role": "prompter", "content": "Sure?"}],
        "chosen": {"role": "model", "content": "Yes."}, "rejected": {"role": "chatgpt", "content": "No."},
    },
    "a prompt of ShareGPT's messages": {
        "prompt": TURNS, "chosen": [says("gpt", "Yes.")], "rejected": [says("gpt", "No.")],
    },
    "HH-RLHF": {"chosen": f"{HEAD}\n\nAssistant: Yes.", "rejected": f"{HEAD}\n\nAssistant: No."},
    "HH-RLHF before the answers": {"conversations": f"{HEAD}", "chosen": "Yes.", "rejected": "No."},
    "Alpaca": {
        "instruction": "Sure?", "input": "", "history": [["1+1?", "2"]], "chosen": "Yes.", "rejected": "No.",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_every_form_of_a_pair_gives_the_same_prompt_and_answers(form, tmp_path):
    row = PAIRS[form]
    clean, found = normalize(loaded(tmp_path, [row | {"id": 7}] * 2))
    assert clean.to_list() == [PAIR | {"id": 7}] * 2
    assert (found.format.kind, found.left_out, found.noted) == ("pairs", {}, {})


@pytest.mark.parametrize("form", PAIRS)
def test_votes_and_targets_go_with_every_form(form, tmp_path):
    for more in ({"chosen_votes": 3, "rejected_votes": 1}, {"target": 0.75}, {"margin": 2.0}):
        (row,) = normalize(loaded(tmp_path, [PAIRS[form] | more]))[0].to_list()
        assert row == PAIR | more


# --- One dialogue, and what was said of its last answer ---------------------------------------

ANSWER = {"prompt": PROMPT, "completion": [assistant("Yes.")]}
WHOLE = {
    "messages": {"messages": [*PROMPT, assistant("Yes.")]},
    "ShareGPT": {"conversations": [*TURNS, says("gpt", "Yes.")]},
    "HH-RLHF": {"completion": f"{HEAD}\n\nAssistant: Yes."},
    "HH-RLHF as a conversation": {"conversations": f"{HEAD}\n\nAssistant: Yes."},
    "a completion that holds its prompt": {"completion": [*PROMPT, assistant("Yes.")]},
    "a completion beside its conversation": {"conversations": TURNS, "completion": "Yes."},
    "Alpaca": {"instruction": "Sure?", "input": None, "history": [["1+1?", "2"]], "output": "Yes."},
}
SIGNALS = {
    "unpaired": ({"label": True}, {"label": False}, {"label": 1.0}),
    "ratings": ({"score": 4}, {"score": 2}, {"score": 4.0}),
    "clicks": ({"clicks": 3, "views": 9}, {"clicks": 1, "views": 9}, {"clicks": 3.0, "views": 9.0}),
    "dwell": ({"dwell_seconds": 9.5}, {"dwell_seconds": 1.0}, {"dwell_seconds": 9.5}),
    "objectives": ({"scores": {"x": 1.0}}, {"scores": {"x": 2.0}}, {"scores": {"x": 1.0}}),
}


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("form", WHOLE)
def test_every_form_of_a_whole_dialogue_is_split_into_prompt_and_answer(form, kind, tmp_path):
    given, other, expected = SIGNALS[kind]
    clean, found = normalize(loaded(tmp_path, [WHOLE[form] | given, WHOLE[form] | other]))
    assert (found.format.kind, found.left_out) == (kind, {})
    assert clean[0] == ANSWER | expected


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("ShareGPT before the answers", {"conversations": TURNS, "completions": ["Yes.", "No."]}),
        ("HH-RLHF", {"completions": [f"{HEAD}\n\nAssistant: Yes.", f"{HEAD}\n\nAssistant: No."]}),
        ("whole dialogues", {"completions": [[*TURNS, says("gpt", "Yes.")], [*TURNS, says("gpt", "No.")]]}),
    ],
)
@pytest.mark.parametrize("said", [{"ranks": [1.0, 2.0]}, {"best": 0, "worst": 1}])
def test_lists_of_answers_have_their_prompt_too(form, columns, said, tmp_path):
    (row,) = normalize(loaded(tmp_path, [columns | said]))[0].to_list()
    assert row == {"prompt": PROMPT, "completions": [[assistant("Yes.")], [assistant("No.")]], **said}


def test_steps_stay_texts_under_the_prompt_of_their_conversation(tmp_path):
    row = {"conversations": TURNS, "completions": ["One and one.", "Two."], "labels": [True, False]}
    clean, found = normalize(loaded(tmp_path, [row]))
    assert found.format.kind == "steps"
    assert clean.to_list() == [{"prompt": PROMPT, "completions": ["One and one.", "Two."], "labels": [1.0, 0.0]}]


# --- What stands beside -----------------------------------------------------------------------


def test_a_system_text_comes_first_and_gives_way_to_one_in_the_messages(tmp_path):
    answers = {"chosen": "Yes.", "rejected": "No."}
    in_column = {"conversations": [says("human", "Sure?")], "system": "Be brief."}
    in_both = {"conversations": [says("system", "Be kind."), says("human", "Sure?")], "system": "Be brief."}
    without = {"conversations": [says("human", "Sure?")], "system": ""}
    clean, _ = normalize(loaded(tmp_path, [one | answers for one in (in_column, in_both, without)]))
    assert clean["prompt"][:] == [
        [system("Be brief."), user("Sure?")],
        [system("Be kind."), user("Sure?")],
        [user("Sure?")],
    ]
    beside_prompt = {"system": "Be brief.", "prompt": "Sure?"} | answers
    beside_instruction = {"system": "Be brief.", "instruction": "Sure?", "input": "1+1=2"} | answers
    assert normalize(loaded(tmp_path, [beside_prompt]))[0]["prompt"][0] == [system("Be brief."), user("Sure?")]
    assert normalize(loaded(tmp_path, [beside_instruction]))[0]["prompt"][0] == [
        system("Be brief."),
        user("Sure?\n1+1=2"),
    ]


def test_calls_of_tools_and_what_they_bring_are_turns(tmp_path):
    talk = [says("human", "Rain?"), says("function_call", '{"name": "look"}'), says("observation", '{"rain": true}')]
    row = {"conversations": [*talk, says("gpt", "Yes.")], "tools": "[]", "label": True}
    other = {"conversations": [*talk, says("gpt", "No.")], "tools": "[]", "label": False}
    clean, found = normalize(loaded(tmp_path, [row, other]))
    assert clean[0]["prompt"] == [
        user("Rain?"),
        assistant('{"name": "look"}'),
        {"role": "tool", "content": '{"rain": true}'},
    ]
    assert clean[0]["completion"] == [assistant("Yes.")]
    assert "not read" not in str(found)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "q", "conversations": TURNS}, "not read: conversations (the prompt is in 'prompt')"),
        ({"question": "q", "system": "s"}, "not read: system, question (rename it to prompt if it is one)"),
        ({"query": "q"}, "not read: query (rename it to prompt if it is one)"),
    ],
)
def test_what_looks_like_a_prompt_and_is_not_read_is_said(columns, said):
    dataset = rows(chosen=["a"], rejected=["b"], **{name: [value] for name, value in columns.items()})
    assert said in str(recognize(dataset))
    assert normalize(dataset)[0]["chosen"][:] == ["a"]


def test_rows_that_are_ours_are_not_touched():
    for dataset in (
        rows(prompt=["q"], chosen=["a"], rejected=["b"]),
        rows(prompt=[PROMPT], chosen=[[assistant("a")]], rejected=[[assistant("b")]]),
        rows(prompt=["\n\nHuman: q\n\nAssistant:"], chosen=[" a"], rejected=[" b"]),
    ):
        assert own_columns(dataset) == (dataset, ())
        assert normalize(dataset)[0].to_list() == dataset.to_list()


# --- What is broken ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        ([says("human", "q"), says("narrator", "x")], "Row 1: a message is from 'narrator'; known are user, human"),
        ([{"speaker": "human", "text": "q"}], "Row 1: a message has .*speaker.*, where role and content, or from and"),
    ],
)
def test_messages_of_nobody_are_refused_with_their_row(talk, words, tmp_path):
    good = {"conversations": TURNS, "chosen": "a", "rejected": "b"}
    with pytest.raises(ValueError, match=words):
        normalize(loaded(tmp_path, [good, good | {"conversations": talk}]))


def test_dialogues_without_an_answer_are_left_out_and_counted(tmp_path):
    given = [[*TURNS, says("gpt", "Yes.")], TURNS, [], [*TURNS, says("gpt", "No.")]]
    dataset = loaded(tmp_path, [{"conversations": talk, "label": place > 0} for place, talk in enumerate(given)])
    clean, found = normalize(dataset)
    assert (found.kept, found.left_out) == ([0, 3], {"no answer at the end": 1, "empty text": 1})
    assert clean["completion"][:] == [[assistant("Yes.")], [assistant("No.")]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "7?", "chosen": ["Yes."], "rejected": ["No.", "Perhaps."]},
            "Row 0 of the pairs: chosen is a list of 1 texts, and must be one text, or messages. Write a row for each",
        ),
        (
            {"instruction": "Shorten.", "answer_a": "A.", "answer_b": "B.", "annotator_1": 1},
            "Feedback needs the columns 'chosen' and 'rejected', or .* The dataset has: instruction, answer_a",
        ),
        (
            {"question": "q", "response_1": "a", "response_2": "b", "winner": 1},
            "Feedback needs the columns 'chosen' and 'rejected', or .* The dataset has: question, response_1",
        ),
    ],
)
def test_what_is_no_format_of_ours_says_what_is_there_and_what_is_needed(row, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        normalize(loaded(tmp_path, [row]))


# --- a dialogue is told apart ---------------------------------------------------------------------


def test_a_dialogue_is_split_into_turns():
    text = "\n\nHuman: Hi, Assistant: are you there?\n\nAssistant: Yes.\n\nSo?\n\nHuman: Bye\n\nAssistant:"
    assert split_dialogue(text) == [
        user("Hi, Assistant: are you there?"),
        assistant("Yes.\n\nSo?"),
        user("Bye"),
        assistant(""),
    ]
    assert split_dialogue("Human: a\n\nAssistant: b") == [user("a"), assistant("b")]
    for other in ("", "Hello", "\n\nHuman: alone", "\n\nAssistant: a\n\nHuman: b", "x\n\nHuman: a\n\nAssistant: b"):
        assert split_dialogue(other) == []
