import pytest

from rlhf_recipes.modeling.loading import ModelArguments, freeze_lower_layers, load_reward_model
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer


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
