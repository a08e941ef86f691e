"""A saved reward model through the code of others: the score of each text is that of `LearnedReward`."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model, load_tokenizer
from rlhf_recipes.outputs import write_json
from rlhf_recipes.report.reward_card import write_card
from rlhf_recipes.reward_modeling.bias.changes import as_trl_reads
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.examples import settings_for
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.saving import save_reward_model, save_settings
from rlhf_recipes.reward_modeling.trainer import make_trainer
from rlhf_recipes.rewards.learned import LearnedReward
from tests.tiny import CHAT_TEMPLATE, save_tiny
from tests.tiny_tokenizers import KINDS

MODELS = ("gpt2", "qwen2", "llama3", "llama2", "gemma", "bert", "distilbert", "roberta", "xlm-roberta")
PROMPTS = ["The film is", "It was", "What a", "", "The film"]
COMPLETIONS = [" a quiet story.", " bad, but the music was good", " wonderful little picture!", "dull", ""]
LONG = "A dull script and a tired cast make this a long evening. It was bad, but the music was good."

PAIRS = Dataset.from_dict(
    {
        "prompt": ["The film is", "What a", "It was", "Nobody"],
        "chosen": [" quiet.", " wonderful little picture!", " great", " could save it but the music"],
        "rejected": [" dull.", " long evening for a tired cast of two brothers", " bad", " again"],
    }
)
RATINGS = Dataset.from_dict({"completion": ["good", "bad", "a good film", "dull"], "score": [3.0, 1.0, 2.0, 1.0]})
OBJECTIVES = Dataset.from_list(
    [
        {"completion": text, "scores": {"kind": 1.0 + row % 3, "short": 3.0 - row}}
        for row, text in enumerate(["good", "bad", "fine"])
    ]
)
CHATS = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": "Was it good?"}],
            "chosen": [{"role": "assistant", "content": "It was great"}],
            "rejected": [{"role": "assistant", "content": word}],
        }
        for word in ("no", "bad")
    ]
)
SLOW = pytest.mark.slow
HEADS = {
    "pairs": (PAIRS, "bradley_terry"),
    "ratings": (RATINGS, "mse"),
    "levels": (RATINGS, "classification"),
    "objectives": (OBJECTIVES, "multi_objective"),
    "chats": (CHATS, "bradley_terry"),
}


def base_of(name, folder, chat_template=None):
    kind = KINDS[name]
    tokenizer = kind.make()
    if tokenizer.pad_token is None:  # a Llama has none of its own
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.chat_template = chat_template
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind.model == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    elif kind.model == "ctrl":
        sizes = {"n_embd": 32, "dff": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    elif kind.model == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2}
    elif kind.model in ("llama", "qwen2", "gemma2"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"max_position_embeddings": 64} if kind.model not in ("gpt2", "ctrl") else {}
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    specials = {name: getattr(tokenizer, name) for name in names}
    config = AutoConfig.for_model(kind.model, vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **specials)
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if kind.before[:1] in (("[CLS]",), ("<s>",)) and kind.after else AutoModelForCausalLM
    return save_tiny(folder, auto.from_config(config), tokenizer)


def trained(folder, base, head, lora=False, max_length=24):
    """Two steps of training by the parts of `recipes/reward.py`, and its way of saving."""
    rows, loss = HEADS[head]
    adapters = {"use_peft": True, "lora_target_modules": ["all-linear"]} if lora else {}
    model_args = ModelArguments(model_name_or_path=str(base), dtype="float32", **adapters)
    args = RewardConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, learning_rate=1e-2, disable_tqdm=True, max_steps=2,
        save_strategy="steps", save_steps=2, per_device_train_batch_size=2, max_length=max_length,
    )  # fmt: skip
    objective = make_objective(loss, {"weights": {"kind": 3.0, "short": -1.0}} if head == "objectives" else None)
    objective.fit(rows)
    tokenizer = load_tokenizer(str(base))
    model = load_reward_model(model_args, tokenizer, labels=objective.label_names)
    settings = settings_for(tokenizer, model, max_length, rows)
    trainer = make_trainer(model, loss, objective, rows, None, tokenizer, settings, args)
    trainer.train()
    save_reward_model(trainer, model_args)
    save_settings(folder, settings, objective, plain=loss == "bradley_terry")
    return folder


def score_of(folder, outputs):
    """The score that the outputs of a model, by its own names, are worth."""
    labels = RewardModelSettings.load(folder).labels
    names = AutoModelForSequenceClassification.from_pretrained(folder).config.id2label
    if labels is None:
        return outputs[names[0]]
    return sum(labels.get(name, 0.0) * value for name, value in outputs.items())


def by_transformers(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    values = logits.softmax(dim=0) if model.config.problem_type == "single_label_classification" else logits
    return score_of(folder, dict(zip(model.config.id2label.values(), values.tolist(), strict=True)))


def combination(name, head, lora):
    place = MODELS.index(name) + tuple(HEADS).index(head)
    quick = place % 5 == 0 and lora == (place % 10 == 0)  # some of each head, and of each way of training
    return pytest.param(name, head, lora, marks=[] if quick else [SLOW], id=f"{name}-{head}-{lora}")


@pytest.mark.parametrize(
    ("name", "head", "lora"),
    [combination(*each) for each in itertools.product(MODELS, [h for h in HEADS if h != "chats"], (False, True))],
)
def test_every_path_gives_the_score(name, head, lora, tmp_path):
    folder = trained(tmp_path / "out", base_of(name, tmp_path / "base"), head, lora)
    assert not RewardModelSettings.load(folder).append_eos  # the tokenizer does it
    reward = LearnedReward(folder, calibrate=False)
    pipe = pipeline("text-classification", model=str(folder))
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)] + [LONG]
    expected = reward(["", *PROMPTS], [LONG, *COMPLETIONS])
    expected = [*expected[1:], expected[0]]
    assert reward.truncated >= 1
    assert max(expected) - min(expected) > 1e-2
    for text, score in zip(texts, expected, strict=True):
        said = pipe(text, truncation=True, top_k=None)
        assert score_of(folder, {each["label"]: each["score"] for each in said}) == pytest.approx(score, abs=1e-5)
        assert by_transformers(folder, text) == pytest.approx(score, abs=1e-5)
        # A text that was given its end already has it once.
        eos = AutoTokenizer.from_pretrained(folder).eos_token or ""
        assert reward([""], [text + eos]) == pytest.approx([score], abs=1e-5)
    if lora:
        assert LearnedReward(folder / "adapter", calibrate=False)(PROMPTS, COMPLETIONS) == pytest.approx(
            expected[:-1], rel=1e-4, abs=1e-5
        )
    elif head != "levels":
        checkpoint = LearnedReward(folder / "checkpoint-2", labels=reward.settings.labels)
        assert checkpoint(PROMPTS, COMPLETIONS) == pytest.approx(expected[:-1], abs=1e-5)


@pytest.mark.parametrize(
    "name", ["qwen2", "bert", *(pytest.param(each, marks=SLOW) for each in ("llama3", "roberta"))]
)
def test_a_cross_encoder_reads_prompt_and_completion_as_one_text(name, tmp_path):
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    folder = trained(tmp_path / "out", base_of(name, tmp_path / "base"), "pairs")
    rows = [(p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    said = cross_encoder(str(folder), device="cpu").predict(rows).tolist()
    assert said == pytest.approx(LearnedReward(folder)(PROMPTS, COMPLETIONS), abs=1e-5)


def test_conversations_are_read_alike_by_name_in_trl_and_as_rendered_text(tmp_path):
    base = base_of("llama3", tmp_path / "base", "{{ bos_token }}" + CHAT_TEMPLATE)
    folder = trained(tmp_path / "out", base, "chats", max_length=60)
    prompts = [[{"role": "user", "content": text}] for text in ("Was it good?", "And the music?")]
    completions = [[{"role": "assistant", "content": text}] for text in ("It was great", "no")]
    reward = LearnedReward(folder)
    expected = reward(prompts, completions)
    by_name = [as_trl_reads(reward, *both) for both in zip(prompts, completions, strict=True)]
    assert reward.scores(by_name).tolist() == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = [
        tokenizer.apply_chat_template(p + c, tokenize=False) for p, c in zip(prompts, completions, strict=True)
    ]
    ids = tokenizer(rendered[0]).input_ids
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    pipe = pipeline("text-classification", model=str(folder))
    assert [each["score"] for each in pipe(rendered)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["llama3", pytest.param("roberta", marks=SLOW)])
def test_training_again_from_the_folder_ends_texts_once(name, tmp_path):
    first = trained(tmp_path / "first", base_of(name, tmp_path / "base"), "pairs")
    second = trained(tmp_path / "second", first, "ratings", max_length=30)
    tokenizer = AutoTokenizer.from_pretrained(second)
    ids = tokenizer("The film is good.").input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.model_max_length == 30
    score = LearnedReward(second, calibrate=False)(["The film"], [" is good."])
    assert by_transformers(second, "The film is good.") == pytest.approx(score[0], abs=1e-5)


def test_what_the_tokenizer_cannot_carry_is_on_the_first_screen(tmp_path):
    folder = trained(tmp_path / "out", base_of("ctrl", tmp_path / "base"), "pairs")
    assert RewardModelSettings.load(folder).append_eos
    eos = AutoTokenizer.from_pretrained(folder).eos_token
    expected = LearnedReward(folder)(PROMPTS, COMPLETIONS)
    texts = [prompt + completion + eos for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert [by_transformers(folder, text) for text in texts] == pytest.approx(expected, abs=1e-5)
    write_json(folder / "metrics.json", {"pairwise_accuracy": 0.8, "pairs": 10})
    page = write_card(folder).read_text()
    first, _ = (folder / "README.md").read_text().split("\n## ", 1)
    assert 'reward_funcs = [LearnedReward("' in first
    assert "text += tokenizer.eos_token" in first
    assert "score(text, truncation=True)" in first
    assert page.index("text += tokenizer.eos_token") < page.index('id="figures"')


def test_an_adapter_finds_its_base_from_any_folder(tmp_path, monkeypatch):
    base_of("qwen2", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "out", "base", "pairs", lora=True)
    expected = LearnedReward("out/adapter")(PROMPTS, COMPLETIONS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert LearnedReward(tmp_path / "out/adapter")(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-6)
