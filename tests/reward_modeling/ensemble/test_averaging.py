import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.reward_modeling.ensemble.averaging import average_models, concatenate_adapters
from rlhf_recipes.rewards.learned import LearnedReward
from tests.ensembles import make_adapter, make_base
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "It was bad, but"]
COMPLETIONS = [" good.", " and a tired cast make this a long evening for all of us.", " the music was great"]


def merged_weights(folder):
    """A model's own weights, of an adapter after PEFT has merged it."""
    if (folder / "adapter_config.json").exists():
        return (
            AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
            .merge_and_unload()
            .state_dict()
        )
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.fixture
def heads(tmp_path):
    """Two models that differ in their heads alone: w = (1, 1, ..), b = 1 and w = (3, -1, ..), b = 5."""
    tokenizer = tiny_tokenizer("bert")
    folders = []
    for name, first, second, bias in (("one", 1.0, 1.0, 1.0), ("other", 3.0, -1.0, 5.0)):
        model = tiny_classifier(tokenizer)
        with torch.no_grad():
            model.classifier.weight[:, ::2], model.classifier.weight[:, 1::2] = first, second
            model.classifier.bias.fill_(bias)
        folders.append(save_tiny(tmp_path / name, model, tokenizer))
    return folders


def test_the_average_of_two_heads_is_the_head_between_them(heads, tmp_path):
    out = average_models(heads, tmp_path / "average")
    table = merged_weights(out)
    assert torch.equal(table["classifier.weight"][0, :4], torch.tensor([2.0, 0.0, 2.0, 0.0]))
    assert table["classifier.bias"].item() == 3.0
    # A linear head on one and the same body: the average of the scores is the score of the average.
    scores = [LearnedReward(folder)(PROMPTS, COMPLETIONS) for folder in heads]
    expected = [(a + b) / 2 for a, b in zip(*scores, strict=True)]
    assert LearnedReward(out)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_weights_say_what_each_model_counts(heads, tmp_path):
    table = merged_weights(average_models(heads, tmp_path / "average", weights=[3.0, 1.0]))
    assert table["classifier.weight"][0, :2].tolist() == pytest.approx([1.5, 0.5])
    assert table["classifier.bias"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_adapters_are_averaged_after_they_are_merged(kind, tmp_path):
    base = make_base(tmp_path / "base", kind)
    folders = [make_adapter(tmp_path / f"adapter_{seed}", base, seed, kind) for seed in range(3)]
    tables = [merged_weights(folder) for folder in folders]
    out = average_models(folders, tmp_path / "average")
    result = merged_weights(out)
    assert result.keys() == tables[0].keys()
    for name, tensor in result.items():
        mean = torch.stack([table[name].double() for table in tables]).mean(dim=0)
        assert tensor.double() == pytest.approx(mean, abs=1e-6), name
    assert any("query" in name or "q_proj" in name for name in result)
    assert RewardModelSettings.load(out).append_eos == (kind == "llama")
    assert AutoTokenizer.from_pretrained(out).pad_token is not None


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"rank": 3}])
def test_adapters_side_by_side_are_the_same_model(lora, tmp_path):
    base = make_base(tmp_path / "base")
    folders = [make_adapter(tmp_path / f"adapter_{seed}", base, seed, **lora) for seed in range(2)]
    weights = [0.25, 0.75]
    one = merged_weights(concatenate_adapters(folders, tmp_path / "wide", weights))
    other = merged_weights(average_models(folders, tmp_path / "average", weights))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=1e-6), name
    assert json.loads((tmp_path / "wide/adapter_config.json").read_text())["r"] == 2 * lora.get("rank", 2)


def test_adapters_side_by_side_are_what_peft_makes_of_them(tmp_path):
    base = make_base(tmp_path / "base")
    folders = [make_adapter(tmp_path / f"adapter_{seed}", base, seed) for seed in range(2)]
    # PEFT adds adapters up that have no head of their own.
    bare = [shutil.copytree(folder, tmp_path / f"bare_{folder.name}") for folder in folders]
    for folder in bare:
        config = json.loads((folder / "adapter_config.json").read_text())
        config |= {"modules_to_save": None, "task_type": None}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    whole = AutoModelForSequenceClassification.from_pretrained(base)
    model = PeftModel.from_pretrained(whole, bare[0], adapter_name="a")
    model.load_adapter(str(bare[1]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", combination_type="cat")
    deltas = {
        name: module.get_delta_weight("both") for name, module in model.named_modules() if hasattr(module, "lora_A")
    }
    ours = AutoPeftModelForSequenceClassification.from_pretrained(
        concatenate_adapters(folders, tmp_path / "wide"), num_labels=1
    )
    assert isinstance(ours, PeftModel)
    modules = dict(ours.named_modules())
    assert len(deltas) == 4  # query and value of two layers
    for name, delta in deltas.items():
        assert modules[name].get_delta_weight("default") == pytest.approx(delta, abs=1e-6)


def test_the_average_of_a_and_b_is_not_the_product_of_averages(tmp_path):
    """What a careless average of the two matrices would give, is another model."""
    base = make_base(tmp_path / "base")
    folders = [make_adapter(tmp_path / f"adapter_{seed}", base, seed) for seed in range(2)]
    tables = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    name = next(name for name in tables[0] if "lora_A" in name)
    a = sum(table[name] for table in tables) / 2
    b = sum(table[name.replace("lora_A", "lora_B")] for table in tables) / 2
    before = AutoModelForSequenceClassification.from_pretrained(base).state_dict()
    after = merged_weights(average_models(folders, tmp_path / "average"))
    key = name.removeprefix("base_model.model.").replace(".lora_A", "")
    assert not torch.allclose(after[key] - before[key], 3.0 * b @ a, atol=1e-3)


# --- what does not fit --------------------------------------------------------------------------------------


def test_models_that_are_no_relatives_are_refused(heads, tmp_path):
    tokenizer = tiny_tokenizer("bert")
    wide = save_tiny(tmp_path / "wide", tiny_classifier(tokenizer, hidden_size=48), tokenizer)
    with pytest.raises(ValueError, match=r"LayerNorm.bias have the shape \(32,\) in .*one and \(48,\) in .*wide"):
        average_models([heads[0], wide], tmp_path / "out")
    llama = tiny_tokenizer("llama")
    decoder = save_tiny(tmp_path / "llama", tiny_classifier(llama, "llama"), llama)
    with pytest.raises(ValueError, match="different vocabularies"):
        average_models([heads[0], decoder], tmp_path / "out")
    with pytest.raises(ValueError, match="has the class BertForSequenceClassification and .* LlamaFor"):
        average_models([heads[0], decoder], tmp_path / "out", processing_class=tokenizer)
    levels = save_tiny(tmp_path / "levels", tiny_classifier(tokenizer, num_labels=2), tokenizer)
    with pytest.raises(ValueError, match="has the labels"):
        average_models([heads[0], levels], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_read_texts_differently_are_refused(heads, tmp_path):
    RewardModelSettings(max_length=9).save(heads[1])
    with pytest.raises(ValueError, match="read texts in different ways"):
        average_models(heads, tmp_path / "out")


def test_nan_in_a_model_is_refused(heads, tmp_path):
    table = load_file(heads[1] / "model.safetensors")
    table["classifier.bias"].fill_(float("nan"))
    save_file(table, heads[1] / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier.bias of .*other hold NaN"):
        average_models(heads, tmp_path / "out")


@pytest.mark.parametrize("average", [average_models, concatenate_adapters])
def test_numbers_that_cannot_be_are_refused(average, heads, tmp_path):
    with pytest.raises(ValueError, match="two models or more"):
        average(heads[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="2 models and 3 weights"):
        average(heads, tmp_path / "out", weights=[1, 1, 1])
    with pytest.raises(ValueError, match="0 or more, and one above 0"):
        average(heads, tmp_path / "out", weights=[0, 0])
    with pytest.raises(ValueError, match="0 or more, and one above 0"):
        average(heads, tmp_path / "out", weights=[2, -1])


def test_adapters_that_cannot_stand_side_by_side_are_refused(heads, tmp_path):
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other_base")
    adapter = make_adapter(tmp_path / "adapter", base, 0)
    with pytest.raises(ValueError, match=r"one holds no adapter"):
        concatenate_adapters([heads[0], adapter], tmp_path / "out")
    with pytest.raises(ValueError, match="only adapters of one base"):
        concatenate_adapters([adapter, make_adapter(tmp_path / "b", other, 1)], tmp_path / "out")
    dora = make_adapter(tmp_path / "dora", base, 1, use_dora=True)
    with pytest.raises(ValueError, match="has use_dora, and is no plain product of two matrices. Use average_models"):
        concatenate_adapters([adapter, dora], tmp_path / "out")
    levels = make_adapter(tmp_path / "levels", base, 1, num_labels=3)
    with pytest.raises(ValueError, match=r"classifier.* the shape \(1,.*have different outputs|different outputs"):
        concatenate_adapters([adapter, levels], tmp_path / "out")


def test_adapters_of_dora_are_averaged_by_merging(tmp_path):
    base = make_base(tmp_path / "base")
    folders = [make_adapter(tmp_path / f"adapter_{seed}", base, seed, use_dora=True) for seed in range(2)]
    tables = [merged_weights(folder) for folder in folders]
    result = merged_weights(average_models(folders, tmp_path / "average"))
    for name, tensor in result.items():
        assert tensor == pytest.approx((tables[0][name] + tables[1][name]) / 2, abs=1e-6)
