import html
import logging
import re

import pytest
import torch

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report.heat import HeatMap, WordAttribution, save_html, to_html
from rlhf_recipes.reward_modeling.explain import attribute
from rlhf_recipes.rewards.learned import LearnedReward
from tests.tiny import tiny_classifier, tiny_tokenizer

TEXT = "The film is a quiet, funny story."


def reward_of(kind="bert", chat_template=False, max_length=None, append_eos=False, **config):
    tokenizer = tiny_tokenizer(kind, chat_template)
    model = tiny_classifier(tokenizer, kind, **config)
    settings = RewardModelSettings(append_eos=append_eos, max_length=max_length)
    return LearnedReward(model, tokenizer, settings=settings, name=kind)


def score_of_embeddings(reward, embeddings):
    """The model on embeddings instead of ids; a decoder then reads its last place."""
    with torch.no_grad():
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        return float(reward.model(inputs_embeds=embeddings, attention_mask=mask).logits[0, 0])


def ends_of(reward, ids, kept, blank):
    layer = reward.model.get_input_embeddings()
    with torch.no_grad():
        return layer(torch.tensor([ids])), layer(torch.tensor([[i if i in kept else blank for i in ids]]))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attributions_add_up_to_the_difference_of_two_scores(kind):
    reward = reward_of(kind, append_eos=kind == "llama")
    blank_id = reward.tokenizer("?").input_ids[-2 if kind == "bert" else 0]
    heat = attribute(reward, "The film is", " a quiet, funny story.", baseline=blank_id, tolerance=1e-3)
    assert heat.score == pytest.approx(reward(["The film is"], [" a quiet, funny story."])[0], abs=1e-5)
    tokenizer = reward.tokenizer
    ids = tokenizer(TEXT + (tokenizer.eos_token if kind == "llama" else "")).input_ids
    kept = {tokenizer.cls_token_id, tokenizer.sep_token_id} if kind == "bert" else {tokenizer.eos_token_id}
    _, blank = ends_of(reward, ids, kept, blank_id)
    assert heat.baseline_score == pytest.approx(score_of_embeddings(reward, blank), abs=1e-5)
    total = sum(word.value for word in heat.words)
    size = sum(abs(value) for _, value in heat.tokens)
    assert abs(total - (heat.score - heat.baseline_score)) <= 1e-3 * size + 1e-5
    assert heat.error == pytest.approx(total - (heat.score - heat.baseline_score), abs=1e-5)
    assert size > 0.1


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_token_gets_its_part_of_the_integral(kind):
    reward = reward_of(kind)
    tokenizer = reward.tokenizer
    blank_id = tokenizer("?").input_ids[-2 if kind == "bert" else 0]
    heat = attribute(reward, "", TEXT, baseline=blank_id, steps=64, tolerance=1e-4)
    kept = {tokenizer.cls_token_id, tokenizer.sep_token_id} - {None}
    full, blank = ends_of(reward, tokenizer(TEXT).input_ids, kept, blank_id)
    # Equation 1 of the paper, with midpoints.
    gradients = torch.zeros_like(full)
    for step in range(256):
        point = (blank + (step + 0.5) / 256 * (full - blank)).requires_grad_()
        score = reward.model(inputs_embeds=point, attention_mask=torch.ones(point.shape[:2])).logits[0, 0]
        gradients += torch.autograd.grad(score, point)[0] / 256
    expected = ((full - blank) * gradients).sum(dim=-1)[0].tolist()
    assert [value for _, value in heat.tokens] == pytest.approx(expected, abs=0.02)
    assert max(map(abs, expected)) > 0.2


def test_special_tokens_stay_and_get_nothing():
    heat = attribute(reward_of("bert"), "", TEXT)
    values = dict(heat.tokens)
    assert (values["[CLS]"], values["[SEP]"]) == (0.0, 0.0)
    heat = attribute(reward_of("llama", append_eos=True), "", TEXT)
    assert heat.tokens[-1] == ("<eos>", 0.0)
    assert heat.text == TEXT + "<eos>"
    assert [word.word for word in heat.words][-2:] == ["story", "."]  # its mark in the text is no word


def test_tokens_are_added_up_word_by_word():
    heat = attribute(reward_of("bert"), "", "unbelievably good 👍🏽!")
    assert [word.word for word in heat.words] == ["unbelievably", "good", "👍🏽", "!"]
    assert len(heat.tokens) > 6  # an unknown word and an emoji are several tokens
    assert sum(word.value for word in heat.words) == pytest.approx(sum(value for _, value in heat.tokens))
    for word in heat.words:
        assert heat.text[word.start : word.end] == word.word


def test_words_are_those_of_any_script_and_signs_stand_alone():
    heat = attribute(reward_of("bert"), "", "静か—it's <b>3.14</b>")
    assert [word.word for word in heat.words] == ["静", "か", "—", "it's", "<", "b", ">", "3.14", "<", "/", "b", ">"]


def test_what_is_cut_off_has_no_value():
    heat = attribute(reward_of("bert", max_length=6), "", TEXT)
    assert heat.words[0].value is None  # the beginning is what a reward model loses
    assert heat.words[-1].value is not None
    assert len(heat.tokens) == 6
    assert "not read" in to_html([heat])


def test_messages_are_read_through_the_template():
    reward = reward_of("llama", chat_template=True)
    prompt, answer = [{"role": "user", "content": "A film?"}], [{"role": "assistant", "content": "It was good."}]
    heat = attribute(reward, prompt, answer)
    assert heat.score == pytest.approx(reward([prompt], [answer])[0], abs=1e-5)
    assert "good" in [word.word for word in heat.words]
    assert heat.tokens[-1] == ("<eos>", 0.0)


@pytest.mark.parametrize("text", ["", " \n", "...", "good " * 300], ids=["empty", "blank", "points", "long"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_text_has_a_map(kind, text):
    reward = reward_of(kind)
    heat = attribute(reward, "", text, steps=4, max_steps=4, tolerance=1e3)
    assert heat.steps == 4
    assert heat.score == pytest.approx(reward([""], [text])[0], abs=1e-4)
    assert [word.word for word in heat.words] == text.replace("...", ". . .").split()
    assert to_html([heat])


def test_an_unknown_word_is_a_word_and_not_a_special_token():
    reward = reward_of("bert")
    heat = attribute(reward, "", "good [UNK] film")
    assert dict(heat.tokens)["[UNK]"] != 0.0


def test_the_baseline_matters_and_can_be_chosen():
    reward = reward_of("bert")
    reward.tokenizer.mask_token = "[UNK]"
    masked, padded = attribute(reward, "", TEXT), attribute(reward, "", TEXT, baseline="pad")
    assert masked.baseline_score != padded.baseline_score
    assert masked == attribute(reward, "", TEXT, baseline="mask")


def test_the_model_is_left_as_it_was():
    reward = reward_of("bert")
    before = {name: value.clone() for name, value in reward.model.state_dict().items()}
    reward.model.train()
    attribute(reward, "", TEXT, steps=2, tolerance=10)
    assert reward.model.training
    assert all(parameter.grad is None for parameter in reward.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reward.model.state_dict().items())
    assert not reward.model.get_input_embeddings()._forward_hooks


def test_more_steps_are_taken_until_the_error_is_small(caplog):
    reward = reward_of("llama")
    blank_id = reward.tokenizer("?").input_ids[0]
    rough = attribute(reward, "", TEXT, baseline=blank_id, steps=1, tolerance=1e6)
    fine = attribute(reward, "", TEXT, baseline=blank_id, steps=1, tolerance=1e-3)
    assert rough.steps == 1
    assert fine.steps > 1
    assert abs(fine.error) < abs(rough.error)
    with caplog.at_level(logging.WARNING):
        attribute(reward, "", TEXT, baseline=blank_id, steps=1, max_steps=1, tolerance=1e-9)
    assert "miss its score by" in caplog.text


def test_rows_and_the_strongest_words():
    heat = attribute(reward_of("bert"), "", TEXT)
    rows = heat.rows()
    assert [row["word"] for row in rows] == ["The", "film", "is", "a", "quiet", ",", "funny", "story", "."]
    assert rows[1].keys() == {"word", "start", "end", "value"}
    sizes = [abs(word.value) for word in heat.top(4)]
    assert sizes == sorted((abs(row["value"]) for row in rows), reverse=True)[:4]


# ---- the page

HEAT = HeatMap(
    text='A <script>alert("x")</script> & good "film"',
    words=(
        WordAttribution("A", 0, 1, None),
        WordAttribution("<", 2, 3, 0.001),
        WordAttribution("good", 32, 36, 2.0),
        WordAttribution("film", 38, 42, -1.0),
    ),
    tokens=(),
    score=1.25,
    baseline_score=0.25,
    error=0.001,
    steps=32,
    name="<judge>",
)


def test_the_page_shows_the_text_as_it_is_and_runs_nothing():
    page = to_html([HEAT], title="1 < 2")
    assert "<script" not in page
    assert "<title>1 &lt; 2: heat maps, rlhf-recipes</title>" in page
    assert "&lt;judge&gt;: 1.250" in page
    text = re.search(r'<p class="heat words" dir="auto">(.*?)</p>', page, re.DOTALL).group(1)
    assert html.unescape(re.sub(r"<[^>]*>", "", text)) == HEAT.text


def test_strength_and_direction_can_be_seen():
    page = to_html([HEAT])
    assert '<span class="up" title="+2.000" style="--a:0.60">good</span>' in page
    assert '<span class="down" title="\u22121.000" style="--a:0.30">film</span>' in page
    assert '<span class="plain" title="+0.001" style="--a:0.00">&lt;</span>' in page  # too faint to be coloured
    assert '<span class="unread" title="not read">A</span>' in page
    assert "account for +1.000, with an error of +0.0010 after 32 steps" in page
    assert "prefers-color-scheme: dark" in page


def test_a_page_holds_several_texts_and_a_map_without_words(tmp_path):
    empty = HeatMap("", (), (), 0.5, 0.5, 0.0, 32, "empty")
    path = save_html([HEAT, empty], tmp_path / "new" / "heat.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("<h2>") == 2
    assert page.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "zero"}, "a token id from 0 to .*, not 'zero'"),
        ({"baseline": 10_000}, "a token id from 0 to .*, not 10000"),
        ({"baseline": "mask"}, "no mask token"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 64, "max_steps": 32}, "at most max_steps"),
        ({"tolerance": 0.0}, "tolerance above 0"),
        ({"batch_size": 0}, "batch_size 1 or more"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        attribute(reward_of("bert"), "", TEXT, **settings)
