"""LanguageTool. Its server is Java, so here stands a double, built to the HTTP API that LanguageTool documents.

It finds what `MISTAKES` lists and nothing else, and takes the parameters of `/v2/check` as the real one does: a form,
offsets in UTF-16 units, lists of ids with commas between, and errors as plain text.
"""

import pickle
import re
from urllib.parse import parse_qs

import pytest

from rlhf_recipes.rewards import EndsWithSentence, RewardError, WeightedSum
from rlhf_recipes.rewards.language.languagetool import LanguageTool
from tests.rewards.test_remote import Double

# What is wrong, the rule that says so, and its category.
MISTAKES = [
    ("This are", "THIS_NNS_VB", "GRAMMAR"),
    ("teh", "MORFOLOGIK_RULE_EN_US", "TYPOS"),
    ("very unique", "VERY_UNIQUE", "STYLE"),
    (r"\A[a-z]", "UPPERCASE_SENTENCE_START", "CASING"),
]


def units(text):
    return len(text.encode("utf-16-le")) // 2


def check(request):
    """What the server answers to `POST /v2/check`."""
    if request["path"] != "/v2/check":
        return 404, b"Error: Unsupported action"
    assert request["headers"]["Content-Type"] == "application/x-www-form-urlencoded"
    form = {name: values[0] for name, values in parse_qs(request["body"].decode(), strict_parsing=True).items()}
    disabled_rules, disabled, enabled = (
        form.get(name, "").split(",") for name in ("disabledRules", "disabledCategories", "enabledCategories")
    )
    if form["language"] != "en-US":
        return 400, f"Error: '{form['language']}' is not a language code known to LanguageTool.".encode()
    only = form.get("enabledOnly") == "true"
    matches = [
        {
            "message": "Possible mistake found.",
            "offset": units(form["text"][: found.start()]),
            "length": units(found.group()),
            "replacements": [],
            "rule": {"id": rule, "issueType": "uncategorized", "category": {"id": category, "name": category}},
        }
        for pattern, rule, category in MISTAKES
        if rule not in disabled_rules and category not in disabled and (not only or category in enabled)
        for found in re.finditer(pattern, form["text"])
    ]
    return 200, {
        "software": {"name": "LanguageTool", "version": "6.6", "apiVersion": 1},
        "warnings": {"incompleteResults": False},
        "language": {"name": "English (US)", "code": "en-US"},
        "matches": matches,
    }


@pytest.fixture
def double():
    with Double(check) as server:
        server.url = server.url.replace("/score", "/v2/check")
        yield server


def values(double, *completions, prompts=None, **settings):
    reward = LanguageTool(double.url, **settings)
    return reward(prompts=prompts or [""] * len(completions), completions=list(completions))


# ---- values, by hand


def test_mistakes_for_each_hundred_words(double):
    # 2 in 4 words, 1 in 5 words, none in 3.
    assert values(double, "This are teh film.", "I saw teh film twice.", "It is fine.") == [-50.0, -20.0, 0.0]


def test_mistakes_for_each_word(double):
    assert values(double, "This are teh film.", per=1) == [-0.5]


def test_text_without_words_does_not_apply_and_is_not_sent(double):
    assert values(double, "", " \n", "?! ...", "🙂 👍🏽", "Fine.") == [None, None, None, None, 0.0]
    assert len(double.requests) == 1


def test_rules_and_categories_that_do_not_count(double):
    text = "this is teh very unique film"  # 6 words; typo, style, and no capital
    assert values(double, text) == [-50.0]
    assert values(double, text, disabled_rules=["UPPERCASE_SENTENCE_START"]) == [pytest.approx(-100 * 2 / 6)]
    assert values(double, text, disabled_categories=["CASING", "STYLE"]) == [pytest.approx(-100 / 6)]
    assert values(double, text, only_categories=["GRAMMAR", "TYPOS"]) == [pytest.approx(-100 / 6)]


def test_what_is_asked(double):
    values(double, "Fine & good = 100%.", disabled_rules=["A", "B"], disabled_categories=["C"], picky=True)
    assert parse_qs(double.requests[0]["body"].decode()) == {
        "text": ["Fine & good = 100%."],
        "language": ["en-US"],
        "disabledRules": ["A,B"],
        "disabledCategories": ["C"],
        "level": ["picky"],
    }
    values(double, "Fine.", only_categories=["TYPOS", "GRAMMAR"])
    form = parse_qs(double.requests[1]["body"].decode())
    assert (form["enabledCategories"], form["enabledOnly"]) == (["TYPOS,GRAMMAR"], ["true"])


def test_a_prompt_may_go_before_and_its_own_mistakes_do_not_count(double):
    prompts = ["teh film 🙂 is", "🙂🙂 It is teh", "This"]
    completions = [" teh best.", " best of all.", " are good."]
    # Alone, each is a text of its own; "This are" shows only with its prompt, and reaches into the completion.
    assert values(double, *completions, prompts=prompts) == [-50.0, 0.0, 0.0]
    together = values(double, *completions, prompts=prompts, completion_only=False)
    assert together == [-50.0, 0.0, -50.0]
    assert values(double, "film", prompts=["A good "], completion_only=False) == [0.0]  # goes on in mid-sentence
    assert values(double, "film", prompts=["A good "]) == [-100.0]


def test_of_a_conversation_the_completion_is_checked(double):
    prompt, completion = [{"role": "user", "content": "teh?"}], [{"role": "assistant", "content": "This are fine."}]
    reward = LanguageTool(double.url, completion_only=False)
    assert reward(prompts=[prompt], completions=[completion]) == [pytest.approx(-100 / 3)]


def test_long_and_mixed_text_goes_as_it_is(double):
    long, mixed = "Word teh " * 5000, "Мир 世界 🙂 teh"  # 2 characters of Han and 2 words with spaces
    assert values(double, long, mixed) == [-50.0, -25.0]
    assert parse_qs(double.requests[-1]["body"].decode())["text"][0] in (long, mixed)


# ---- properties


def test_it_is_a_reward_like_any_other(double):
    reward = LanguageTool(double.url, name="grammar", max_concurrent=3, disabled_rules=["VERY_UNIQUE"])
    again = pickle.loads(pickle.dumps(reward))
    assert (again, again.__name__, LanguageTool().__name__) == (reward, "grammar", "LanguageTool")
    texts = ["This are teh film.", "", "It is fine.", "I saw teh film twice."] * 3
    rows = {"prompts": ["a"] * 12, "completions": texts, "completion_ids": [[1]] * 12, "reference": [None] * 12}
    together = again(**rows)
    assert together == [-50.0, None, 0.0, -20.0] * 3
    assert [again(prompts=["a"], completions=[text])[0] for text in texts] == together
    total = WeightedSum([reward, EndsWithSentence()], weights=[0.1, 1.0])
    assert total(**rows)[:4] == pytest.approx([-4.0, 0.0, 1.0, -1.0])


def test_it_is_sent_at_once_and_waited_for_later(double):
    assert LanguageTool(double.url).start(["", ""], ["teh", "?"])() == [-200.0, None]  # no capital either


# ---- failures


def test_what_the_server_refuses_is_said_in_its_words(double):
    with pytest.raises(RewardError, match="'LanguageTool' got no values .* 400 Bad Request: Error: 'xx' is not a"):
        values(double, "Fine.", language="xx")
    with pytest.raises(RewardError, match="404 Not Found: Error: Unsupported action"):
        LanguageTool(double.url.replace("/v2/check", "/check"))(prompts=[""], completions=["Fine."])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"rewards": [1.0]}, "without a list of matches"),
        ({"matches": 3}, "without a list of matches"),
        ({"matches": [{"offset": 1}]}, "each with an offset and a length"),
        ([], "without a list of matches"),
        ({"matches": [], "warnings": {"incompleteResults": True}}, "results for a text are incomplete"),
        (b"<html>", "no JSON"),
    ],
)
def test_an_answer_that_is_not_a_full_list_of_matches_never_becomes_a_number(answer, said):
    with Double(lambda request: (200, answer)) as double, pytest.raises(RewardError, match=said):
        values(double, "Fine.")
    assert len(double.requests) == 1


def test_a_busy_server_is_asked_again_and_one_that_is_away_is_named():
    def at_first_busy(request):
        if len(double.requests) < 3:
            return 503, b"Error: There are currently too many parallel requests. Please try again later."
        return check(request)

    with Double(at_first_busy) as double:
        double.url = double.url.replace("/score", "/v2/check")
        assert values(double, "This are fine.", backoff=0.001) == [pytest.approx(-100 / 3)]
    with pytest.raises(RewardError, match="v2/check: it cannot be reached .* Check that the server runs"):
        values(double, "Fine.", retries=1, backoff=0.001)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost"}, "url of LanguageTool is 'localhost'"),
        ({"per": 0}, "per of LanguageTool is 0; it must be 1 or more"),
        ({"language": ""}, "needs a language"),
        ({"disabled_rules": "STYLE"}, "disabled_rules of LanguageTool is 'STYLE'; give a list"),
        ({"only_categories": ["TYPOS"], "disabled_rules": ["X"]}, "not both: the server refuses that"),
        ({"timeout": -1}, "timeout of LanguageTool is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LanguageTool(**settings)
