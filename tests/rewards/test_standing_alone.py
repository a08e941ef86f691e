"""Which rewards have a value for whatever a policy may write, and how a run is told at its start of those without.

Over all rewards of the library and the texts at the border: nothing, nothing to see, one sign, another script, a very
long one.
"""

import math

import pytest

from rlhf_recipes import rewards
from rlhf_recipes.reward_modeling.linear.features import FeatureSet, Keywords
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from rlhf_recipes.rewards import Otherwise, WeightedSum, load_reward
from rlhf_recipes.rewards.loading import RewardArguments
from tests.ppo.helpers import trainer
from tests.tiny import tiny_base, tiny_causal_lm, tiny_classifier, tiny_tokenizer

TEXTS = [
    "",
    " \n",
    "\u200b",
    "👍🏽",
    "🜁",
    "...",
    "好",
    "42",
    "The film is good and quiet.",
    "a good film, but long. " * 300,
]
BLANK = TEXTS[:3]
LLAMA, BERT = tiny_tokenizer("llama"), tiny_tokenizer("bert")
# Not here: what asks a server (its values are its own), and what is made of models like those that are here.
ELSEWHERE = {"MathAnswer", "RemoteReward", "LanguageTool", "ImageTextReward", "PersonalReward", "SharedBaseEnsemble"}


def learned(**settings):
    return rewards.LearnedReward(tiny_classifier(BERT), BERT, **settings)


def linear():
    model = LinearRewardModel([Keywords(("good",), "good")], "sklearn.linear_model:LinearRegression")
    model.fit_ratings([""] * 3, ["film", "good film", "good good film"], [0.0, 1.0, 2.0])
    return rewards.LinearReward(model)


def of_steps(**settings):
    return rewards.StepReward(lambda prompt, steps: [0.5] * len(steps), **settings)


def tokens_of_a_classifier():
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(vocab_size=len(BERT), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8, num_labels=1, pad_token_id=BERT.pad_token_id)  # fmt: skip
    return rewards.TokenClassifierReward(BertForTokenClassification(config), LLAMA, processing_class=BERT)


MADE = {
    "Acceptability": lambda: rewards.Acceptability(tiny_causal_lm(LLAMA), processing_class=LLAMA, max_length=64),
    "ActiveParameters": lambda: rewards.ActiveParameters(tiny_causal_lm(LLAMA)),
    "BLEU": rewards.BLEU,
    "ChrF": rewards.ChrF,
    "Clip": lambda: rewards.Clip("Vader", low=-0.5),
    "Discount": lambda: rewards.Discount("TokenCount", scale=5.0),
    "DistinctN": rewards.DistinctN,
    "EmbeddingDistance": lambda: rewards.EmbeddingDistance(tiny_base("bert", BERT).bert, processing_class=BERT),
    "EmbeddingSimilarity": lambda: rewards.EmbeddingSimilarity(tiny_base("bert", BERT).bert, processing_class=BERT),
    "EndsWithSentence": rewards.EndsWithSentence,
    "EnsembleReward": lambda: rewards.EnsembleReward([learned(), learned()]),
    "ExactMatch": rewards.ExactMatch,
    "Flops": lambda: rewards.Flops(tiny_causal_lm(LLAMA), tokenizer=LLAMA),
    "Fluency": lambda: rewards.Fluency(tiny_causal_lm(LLAMA), processing_class=LLAMA, max_length=64),
    "Gate": lambda: rewards.Gate("Vader", only_if="PlainProse", otherwise=-1.0),
    "JsonSchema": lambda: rewards.JsonSchema({}),
    "KeywordCoverage": lambda: rewards.KeywordCoverage(["film"]),
    "KeywordProgress": lambda: rewards.KeywordProgress(["film"], tokenizer=LLAMA),
    "Language": rewards.Language,
    "LearnedReward": learned,
    "LengthWindow": lambda: rewards.LengthWindow(maximum=20),
    "LinearReward": linear,
    "Map": lambda: rewards.Map("Vader"),
    "NgramNovelty": rewards.NgramNovelty,
    "NumberAnswer": lambda: rewards.NumberAnswer(column="number"),
    "ShortAnswer": lambda: rewards.ShortAnswer(column="reference"),
    "OnText": lambda: rewards.OnText(len),
    "Otherwise": lambda: Otherwise("Spelling", value=-1.0),
    "PlainProse": rewards.PlainProse,
    "PrefixScore": lambda: rewards.PrefixScore("EndsWithSentence", tokenizer=LLAMA, every=8),
    "Product": lambda: rewards.Product(["PlainProse", "EndsWithSentence"]),
    "ROUGE": rewards.ROUGE,
    "RegexMatch": lambda: rewards.RegexMatch("film"),
    "Relative": lambda: rewards.Relative("Vader"),
    "Repetition": rewards.Repetition,
    "Scale": lambda: rewards.Scale("Vader"),
    "SelfBLEU": rewards.SelfBLEU,
    "SentimentClassifier": lambda: rewards.SentimentClassifier(
        tiny_classifier(BERT, num_labels=2), "LABEL_1", "LABEL_0", processing_class=BERT
    ),
    "Spelling": rewards.Spelling,
    "StepReward": of_steps,
    "ThinkAnswerFormat": rewards.ThinkAnswerFormat,
    "TokenClassifierReward": tokens_of_a_classifier,
    "TokenCount": rewards.TokenCount,
    "TokenF1": rewards.TokenF1,
    "Vader": rewards.Vader,
}
LOWEST = {"Vader": -1.0, "SentimentClassifier": -1.0, "EmbeddingSimilarity": -1.0, "EmbeddingDistance": 0.0,
          "Spelling": 0.0, "Language": 0.0, "BLEU": 0.0, "DistinctN": 0.0}  # fmt: skip


def values_of(reward, texts, prompts=None):
    ids = [LLAMA(text, add_special_tokens=False).input_ids + [LLAMA.eos_token_id] for text in texts]
    columns = {"reference": ["A film."] * len(texts), "number": ["42"] * len(texts)}
    return WeightedSum([reward]).parts(prompts or [""] * len(texts), texts, ids, **columns)[reward.__name__]


def test_a_linear_reward_of_completions_alone_may_not_apply():
    model = LinearRewardModel(FeatureSet([Keywords(("good",), "good")], completion_only=True))
    model.fit_ratings([""] * 3, ["film", "good film", "good good film"], [0.0, 1.0, 2.0])
    assert rewards.LinearReward(model).may_not_apply


def test_all_rewards_are_here():
    assert set(MADE) | ELSEWHERE == set(rewards.REWARDS)


@pytest.mark.parametrize("name", MADE)
def test_a_reward_has_a_value_for_all_that_a_policy_may_write_or_says_that_it_has_not(name):
    reward = MADE[name]()
    # Of one prompt, so that each has siblings. A linear reward reads prompt and completion as one text.
    values = values_of(reward, TEXTS, ["A film"] * len(TEXTS) if name == "LinearReward" else None)
    if not getattr(reward, "may_not_apply", False):
        assert None not in values
    flat = [one for value in values for one in (value if isinstance(value, list) else [value]) if one is not None]
    assert all(math.isfinite(value) for value in flat)
    assert values_of(reward, TEXTS[-2:])[0] is not None


@pytest.mark.parametrize("name", LOWEST)
def test_nothing_to_see_is_the_worst_answer_where_there_is_a_worst(name):
    reward = MADE[name]()
    values = values_of(reward, [*BLANK, *TEXTS[-2:]])
    assert values[:3] == [LOWEST[name]] * 3
    assert min(values[3:]) >= LOWEST[name]


@pytest.mark.parametrize("name", [name for name in MADE if name != "LinearReward"])
def test_what_cannot_stand_alone_is_told_before_the_run(name, tmp_path):
    reward = MADE[name]()
    if not getattr(reward, "may_not_apply", False) or getattr(reward, "per_token", False):
        return
    message = rf"{name} cannot stand alone: .* it has nothing to say .*func: Otherwise, args: {{reward: {name}"
    with pytest.raises(ValueError, match=message):
        RewardArguments([reward]).load_for_trl()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, reward=[reward])
    RewardArguments([Otherwise(reward, value=-20.0)]).load_for_trl()
    RewardArguments([reward, {"func": "EndsWithSentence", "weight": 0}]).load_for_trl()


HOLDERS = {
    "Clip": lambda reward: rewards.Clip(reward, low=-9.0),
    "Scale": lambda reward: rewards.Scale(reward),
    "Map": lambda reward: rewards.Map(reward),
    "Product": lambda reward: rewards.Product([rewards.Map(reward), "PlainProse"]),
    "Gate": lambda reward: rewards.Gate(reward, only_if="EndsWithSentence"),
    "condition": lambda reward: rewards.Gate("EndsWithSentence", only_if=reward),
    "EnsembleReward": lambda reward: rewards.EnsembleReward([reward, "EndsWithSentence"]),
    "Discount": lambda reward: rewards.Discount(rewards.Map(reward), scale=1.0),
    "named": lambda reward: load_reward(reward, name="named"),
    "sum": lambda reward: WeightedSum([reward]),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_what_is_made_of_a_reward_that_may_not_apply_may_not_either(hold):
    assert hold(rewards.Spelling()).may_not_apply
    assert not hold(rewards.Vader()).may_not_apply


def test_a_closed_gate_without_a_value_does_not_apply():
    assert rewards.Gate("Vader", only_if="PlainProse", otherwise=None).may_not_apply


def test_several_that_cannot_stand_do_not_stand_together():
    with pytest.raises(ValueError, match="Spelling, Language cannot stand alone: .* they have nothing to say"):
        RewardArguments(["Spelling", "Language"]).load_for_trl()


def test_otherwise_gives_its_value_where_a_reward_has_none():
    reward = Otherwise("Spelling", value=-1.0)
    assert reward(prompts=[""] * 3, completions=["...", "film", ""], completion_ids=[[1]] * 3) == [-1.0, 1.0, 0.0]
    assert reward.__name__ == "Spelling"
    for value in (None, float("nan"), "0"):
        with pytest.raises(ValueError, match="value of Otherwise is .*; it must be a finite number"):
            Otherwise("Spelling", value=value)
