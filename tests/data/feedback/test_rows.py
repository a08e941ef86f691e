"""The turns of a dialogue, told apart."""

from rlhf_recipes.data.feedback.dialogues import split_dialogue
from tests.data.feedback_examples import assistant, user


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
