import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model
from rlhf_recipes.reward_modeling.trainer import RewardConfig, fit_precision, freeze_lower_layers, save_reward_model
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

ROWS = [
    {"chosen_ids": [10 + row % 90] * (3 + row * 37 % 64), "rejected_ids": [5], "length": 3 + row * 37 % 64}
    for row in range(64)
]


def trainer_of(folder, model, tokenizer, rows=ROWS, **options):
    settings = {"use_cpu": True, "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True}
    return RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(folder), **(settings | options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer),
    )


def test_defaults_fit_the_machine(tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.gradient_checkpointing, args.remove_unused_columns) == (False, False)
    assert args.report_to == []
    assert args.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_where_the_processor_has_it(has, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.reward_modeling.trainer.cpu_has_bfloat16", lambda: has)
    assert RewardConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is has
    assert RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=not has).bf16 is not has
    if not torch.accelerator.is_available():
        args = RewardConfig(output_dir=str(tmp_path))
        assert (args.bf16, args.use_cpu) == (has, has)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes is 0"),
        ({"min_gap": -1.0}, "min_gap -1"),
        ({"train_share": "half"}, "as in 0:0.6"),
        ({"max_length": 0}, "max_length is 0"),
        ({"remove_unused_columns": True}, "would remove the lengths"),
    ],
)
def test_settings_out_of_range_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_a_quantized_model_is_trained_in_bfloat16(tmp_path):
    plain = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, passes=3)
    assert fit_precision(plain, ModelArguments()) is plain
    args = fit_precision(plain, ModelArguments(load_in_4bit=True, use_peft=True))
    assert (args.bf16, args.passes, plain.bf16) == (True, 3, False)


def test_batches_hold_texts_of_similar_length(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    trainer = trainer_of(tmp_path, tiny_classifier(tokenizer), tokenizer)
    pairs = [batch["attention_mask"].sum(dim=1)[:2].tolist() for batch in trainer.get_train_dataloader()]
    assert sorted(length for pair in pairs for length in pair) == list(range(3, 67))
    # Two of 64 lengths at random are 22 apart.
    assert sum(abs(first - second) for first, second in pairs) / len(pairs) < 8


def test_the_loss_is_that_of_bradley_and_terry(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    rows = [{"chosen_ids": [11, 12], "rejected_ids": [13], "margin": 0.5, "length": 2}]
    trainer = trainer_of(tmp_path, model, tokenizer, rows=rows)
    with torch.no_grad():
        chosen, rejected = (model(torch.tensor([ids])).logits.item() for ids in ([11, 12], [13]))
        loss = trainer.compute_loss(model, trainer.data_collator(rows))
    # log(1 + exp(-x)) is -log sigmoid(x).
    assert loss.item() == pytest.approx(
        torch.tensor(1 + 2.718281828 ** -(chosen - rejected - 0.5)).log().item(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "frozen", "free"),
    [
        (
            "bert",
            ("bert.embeddings.", "bert.encoder.layer.0."),
            ("bert.encoder.layer.1.", "bert.pooler.", "classifier."),
        ),
        ("llama", ("model.embed_tokens.", "model.layers.0."), ("model.layers.1.", "model.norm.", "score.")),
    ],
)
def test_lower_layers_and_embeddings_are_frozen(kind, frozen, free):
    model = tiny_classifier(tiny_tokenizer(kind), kind)
    freeze_lower_layers(model, 1)
    for name, parameter in model.named_parameters():
        assert name.startswith(free if parameter.requires_grad else frozen), name
    freeze_lower_layers(model, 0)  # changes nothing
    assert sum(parameter.requires_grad for parameter in model.parameters()) > 0


def test_more_layers_than_there_are_cannot_be_frozen(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_classifier(tokenizer, "llama")
    with pytest.raises(ValueError, match="num_frozen_layers is 3, but the model has 2 layers"):
        freeze_lower_layers(model, 3)
    folder = save_tiny(tmp_path / "model", model, tokenizer)
    adapted = load_reward_model(ModelArguments(model_name_or_path=str(folder), use_peft=True), tokenizer)
    with pytest.raises(ValueError, match="give lora_num_layers"):
        freeze_lower_layers(adapted, 1)


def test_an_adapter_is_saved_on_its_own_too_and_gives_the_same_scores(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    base = save_tiny(tmp_path / "base", tiny_classifier(tokenizer, "llama"), tokenizer)
    model_args = ModelArguments(model_name_or_path=str(base), use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    model = load_reward_model(model_args, tokenizer)
    trainer = trainer_of(tmp_path / "out", model, tokenizer, learning_rate=1e-2, bf16=False)
    trainer.train()
    ids = torch.tensor([[11, 12, 13]])
    with torch.no_grad():
        trained = model.eval()(ids).logits.item()
        save_reward_model(trainer, model_args)
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert merged.eval()(ids).logits.item() == pytest.approx(trained, abs=1e-5)
        adapter = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(base)
        assert not (tmp_path / "out/adapter_config.json").exists()  # else from_pretrained would load both
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        again.load_adapter(str(tmp_path / "out/adapter"))
        assert again.eval()(ids).logits.item() == pytest.approx(trained, abs=1e-5)
