"""Reward models as other projects leave them in folders: each score is worked out here from the parts."""

import json
import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from trl import RewardConfig, RewardTrainer

from rlhf_recipes.rewards import LearnedReward, load_rewards
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

PROMPTS, COMPLETIONS = ["The film is", "It was", ""], [" a quiet story.", " bad", "dull"]


class ValueHead(nn.Module):
    """The head of TRL's `AutoModelForCausalLMWithValueHead`: a linear layer with a bias on the last hidden state."""

    def __init__(self, hidden_size):
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.summary.weight)
        nn.init.normal_(self.summary.bias)


@pytest.fixture
def parts():
    """A tokenizer, a language model whose tokens say different things, and a head."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("llama")
    return tokenizer, tiny_causal_lm(tokenizer, initializer_range=0.3), ValueHead(32)


def values_of(tokenizer, model, head, end=""):
    """What the head says of the last token of each text."""
    found = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(prompt + completion + end, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states[-1]
            found.append(head(states)[0, -1, 0].item())
    assert max(found) - min(found) > 0.1
    return found


def in_weights(folder, state, name="model.safetensors"):
    """Put further weights into the file of a model."""
    if name.endswith(".safetensors"):
        save_file(load_file(folder / name) | state, folder / name, metadata={"format": "pt"})
    else:
        torch.save(load_file(folder / "model.safetensors") | state, folder / name)
        (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("name", ["value_head.safetensors", "value_head.bin"])
def test_a_whole_model_of_llama_factory(name, parts, tmp_path):
    tokenizer, model, head = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    state = {f"v_head.{key}": tensor for key, tensor in head.state_dict().items()}
    torch.save(state, folder / name) if name.endswith(".bin") else save_file(state, folder / name)
    expected = values_of(tokenizer, model, head.summary)
    assert LearnedReward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("of_trl", [False, True])
def test_an_adapter_of_llama_factory_and_of_an_old_trl(of_trl, parts, tmp_path):
    tokenizer, model, head = parts
    base = save_tiny(tmp_path / "base", model, tokenizer)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).eval()
    adapted.save_pretrained(tmp_path / "rm")
    state = {f"v_head.{key}": tensor for key, tensor in head.state_dict().items()}
    if of_trl:
        torch.save(state, tmp_path / "rm/pytorch_model.bin")
    else:
        save_file(state, tmp_path / "rm/value_head.safetensors")
    expected = values_of(tokenizer, adapted, head.summary)
    assert expected != pytest.approx(values_of(tokenizer, model, head.summary), abs=1e-3)
    assert LearnedReward(tmp_path / "rm")(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("zero3", [False, True])
def test_a_model_with_a_value_head_of_an_old_trl(name, zero3, parts, tmp_path):
    tokenizer, model, head = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    if zero3:  # put together of its shares, names have a prefix
        state = {f"pretrained_model.{key}": tensor for key, tensor in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    in_weights(folder, {f"v_head.{key}": tensor for key, tensor in head.state_dict().items()}, name)
    expected = values_of(tokenizer, model, head.summary)
    assert LearnedReward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("head_name", ["value_head", "score"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_model_of_openrlhf(head_name, normalize, parts, tmp_path):
    tokenizer, model, _ = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    head = nn.Linear(32, 1, bias=False)
    nn.init.normal_(head.weight)
    in_weights(folder, {f"{head_name}.weight": head.weight.detach()})
    config = json.loads((folder / "config.json").read_text())
    # Its class has this name, and its configuration does not say how many outputs there are.
    config |= {"architectures": ["RewardModel"], "normalize_reward": normalize, "mean": 0.5, "std": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    expected = values_of(tokenizer, model, head)
    if normalize:
        expected = [(value - 0.5) / 2.0 for value in expected]
    assert LearnedReward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    ended = LearnedReward(folder, append_eos=True, calibrate=False)
    with_eos = values_of(tokenizer, model, head, end="<eos>")
    assert ended(PROMPTS, COMPLETIONS) == pytest.approx(with_eos, abs=1e-5)


def test_weights_in_several_files(parts, tmp_path):
    tokenizer, model, head = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    whole = load_file(folder / "model.safetensors")
    in_second = {f"v_head.{key}": tensor for key, tensor in head.state_dict().items()}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, state in zip(names, (whole, in_second), strict=True):
        save_file(state, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    places = dict.fromkeys(whole, names[0]) | dict.fromkeys(in_second, names[1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    expected = values_of(tokenizer, model, head.summary)
    assert LearnedReward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_head_that_is_not_known_is_named(parts, tmp_path):
    tokenizer, model, _ = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    in_weights(folder, {"v_head.0.weight": torch.zeros(64, 32)})
    with pytest.raises(
        ValueError, match=r"lack score.weight.*They hold v_head.0.weight, which the model has no place"
    ):
        LearnedReward(folder)


def test_a_file_for_a_head_without_one_is_refused(parts, tmp_path):
    tokenizer, model, _ = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    save_file({"v_head.other": torch.zeros(1)}, folder / "value_head.safetensors")
    with pytest.raises(ValueError, match=r"should hold the head.*v_head.summary.weight, but does not"):
        LearnedReward(folder)


def test_a_head_of_another_size_is_refused(parts, tmp_path):
    tokenizer, model, _ = parts
    folder = save_tiny(tmp_path / "rm", model, tokenizer)
    in_weights(folder, {"value_head.weight": torch.zeros(1, 16)})
    with pytest.raises(ValueError, match=r"weights of shape \(1, 16\), which does not fit LlamaForSequenceClassif"):
        LearnedReward(folder)


# --- TRL's RewardTrainer -----------------------------------------------------------------------------------


def trained_by_trl(folder, kind="llama", **options):
    """A reward model as TRL's own trainer leaves it, with its last checkpoint, and its loss on the training rows."""
    tokenizer = tiny_tokenizer(kind)
    if kind == "bert":
        tokenizer.eos_token = tokenizer.sep_token  # without one TRL's trainer fails
    pairs = {
        "prompt": ["The film is", "What a"], "chosen": [" quiet.", " picture!"], "rejected": [" dull", " long evening"]
    }  # fmt: skip
    args = RewardConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=2, save_steps=2, learning_rate=1e-2,
        report_to="none", disable_tqdm=True, gradient_checkpointing=False, **options,
    )  # fmt: skip
    model = tiny_classifier(tokenizer, kind)
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_dict(pairs), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    return trainer, pairs


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("place", ["", "checkpoint-2"])
def test_what_trl_trained_is_scored_on_what_it_learned_from(kind, place, tmp_path, caplog):
    trainer, pairs = trained_by_trl(tmp_path, kind)
    with caplog.at_level(logging.WARNING):
        reward = LearnedReward(tmp_path / place)
    said = [record.getMessage() for record in caplog.records if "RewardTrainer" in record.getMessage()]
    assert len(said) == 1
    model = trainer.model.eval()
    for side in ("chosen", "rejected"):
        ids = trainer.train_dataset[f"{side}_ids"]  # as TRL made them
        expected = [model(torch.tensor([row])).logits.item() for row in ids]
        assert reward(pairs["prompt"], pairs[side]) == pytest.approx(expected, abs=1e-5)


def test_the_card_of_trl_is_enough(tmp_path):
    trained_by_trl(tmp_path)
    (tmp_path / "training_args.bin").unlink()
    assert LearnedReward(tmp_path).settings.append_eos
    card = (tmp_path / "README.md").read_text()
    old = "\n".join("- TRL: 0.19.1" if line.startswith("- TRL:") else line for line in card.splitlines())
    (tmp_path / "README.md").write_text(old)  # versions that appended nothing
    assert not LearnedReward(tmp_path).settings.append_eos


def test_one_switch_says_whether_texts_have_an_end(tmp_path, caplog):
    trained_by_trl(tmp_path)
    spec = {"func": str(tmp_path), "name": "judge", "args": {"append_eos": False}}
    assert not load_rewards([spec]).reward_funcs[0].settings.append_eos
    plain = save_tiny(tmp_path / "plain", tiny_classifier(tiny_tokenizer(), "llama"), tiny_tokenizer())
    assert not LearnedReward(plain).settings.append_eos
    assert LearnedReward(plain, append_eos=True).settings.append_eos
    assert "RewardTrainer" not in caplog.text


def test_nothing_of_a_pickle_is_run(tmp_path):
    folder = save_tiny(tmp_path, tiny_classifier(tiny_tokenizer(), "llama"), tiny_tokenizer())

    class Trap:
        def __reduce__(self):
            return (folder.joinpath("ran").touch, ())

    torch.save(Trap(), folder / "training_args.bin")
    LearnedReward(folder)
    assert not (folder / "ran").exists()
    assert AutoConfig.from_pretrained(folder).num_labels == 1


def test_a_head_of_several_classes_is_left_to_transformers(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_classifier(tokenizer, "llama", num_labels=3)
    folder = save_tiny(tmp_path, model, tokenizer)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": None}
    (folder / "config.json").write_text(json.dumps(config))
    ids = tokenizer("The film is good.", return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).logits[0, 2].item()
    assert LearnedReward(folder, label=2)(["The film"], [" is good."]) == pytest.approx([expected], abs=1e-5)
