"""A pad token that is not the end, no dropout, adapters where asked for, and errors that say what to do."""

import pytest
import torch

from rlhf_recipes.modeling.loading import (
    ModelArguments,
    add_adapters,
    check_model_path,
    disable_dropout,
    ensure_pad_token,
    freeze_lower_layers,
    load_policy,
    load_reward_model,
    load_tokenizer,
)
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("policy"), tiny_causal_lm(tokenizer), tokenizer))


def lora(folder, **kwargs):
    return ModelArguments(
        model_name_or_path=folder, use_peft=True, lora_r=2, lora_target_modules=["q_proj", "v_proj"], **kwargs
    )


def test_a_pad_token_of_its_own_is_kept():
    tokenizer = tiny_tokenizer()
    assert ensure_pad_token(tokenizer).pad_token == "<pad>"


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_a_pad_token_that_is_the_end_or_missing_is_replaced(pad):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    assert ensure_pad_token(tokenizer).pad_token == "<pad>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_without_a_spare_token_one_is_added():
    tokenizer = tiny_tokenizer("bert")
    known = len(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token = "[PAD]"
    tokenizer.bos_token = "[UNK]"
    assert ensure_pad_token(tokenizer).pad_token == "<pad>"
    assert (tokenizer.pad_token_id, tokenizer.eos_token) == (known, "[PAD]")


def test_load_tokenizer_settles_the_pad_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    loaded = load_tokenizer(str(tmp_path), padding_side="left")
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<pad>", "<eos>", "left")


@pytest.mark.parametrize("name", ["./nothing/here", "/no/such/model", "starter/smollm2", "a/b/c"])
def test_a_path_without_a_model_is_refused(name):
    with pytest.raises(FileNotFoundError, match="No model at"):
        check_model_path(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither config.json nor adapter_config.json"):
        check_model_path(str(tmp_path))


def test_a_hub_id_passes():
    assert check_model_path("someone/some-model") == "someone/some-model"


def test_no_model_at_all_is_refused():
    with pytest.raises(ValueError, match="--model_name_or_path"):
        load_policy(ModelArguments())


def test_dropout_is_off_also_where_it_is_a_number_of_the_attention(tokenizer):
    llama = tiny_causal_lm(tokenizer, attention_dropout=0.5).train()
    bert = tiny_classifier(tokenizer, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    for model in (llama, bert):
        assert not torch.equal(model(ids).logits, model(ids).logits)
        disable_dropout(model)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_policy_is_loaded_in_full_precision_without_dropout(folder):
    policy = load_policy(ModelArguments(model_name_or_path=folder))
    assert policy.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_adapters_go_on_the_last_layers_alone(folder):
    policy = load_policy(lora(folder, lora_num_layers=1))
    trained = {name.split("layers.")[1][0] for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {"1"}  # of layers 0 and 1


@pytest.mark.parametrize("layers", [0, 3])
def test_more_layers_than_there_are_is_refused_with_both_numbers(folder, tokenizer, layers):
    with pytest.raises(ValueError, match=f"lora_num_layers is {layers}.*2 layers.*from 1 to 2"):
        add_adapters(tiny_causal_lm(tokenizer), lora(folder, lora_num_layers=layers))


def test_saved_adapters_are_loaded_on_their_base_and_unfrozen_for_training(folder, tmp_path):
    policy = load_policy(lora(folder))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    policy.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    for trainable in (True, False):
        again = load_policy(ModelArguments(model_name_or_path=str(tmp_path)), is_trainable=trainable)
        assert any(parameter.requires_grad for parameter in again.parameters()) == trainable
        torch.testing.assert_close(again(ids).logits, policy(ids).logits)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_reward_model_comes_back_with_its_head_and_the_pad_token(tmp_path, kind):
    tokenizer = tiny_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind=kind)
    save_tiny(tmp_path, model, tokenizer)
    loaded = load_reward_model(ModelArguments(model_name_or_path=str(tmp_path)), tokenizer, is_trainable=False)
    batch = tokenizer(["A dull script.", "What a wonderful little picture!"], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    assert loaded.config.pad_token_id == tokenizer.pad_token_id


def test_a_reward_model_with_adapters_trains_its_head_too(folder, tokenizer):
    args = lora(folder)
    before = args.lora_task_type
    model = load_reward_model(args, tokenizer)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    assert args.lora_task_type == before  # the user's object stays as it is


# --- frozen layers --------------------------------------------------------------------------------


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
