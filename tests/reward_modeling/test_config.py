import pytest
import torch

from rlhf_recipes.modeling.loading import ModelArguments
from rlhf_recipes.reward_modeling.config import RewardConfig, fit_precision


def test_defaults_fit_the_machine(tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.gradient_checkpointing, args.remove_unused_columns) == (False, False)
    assert args.report_to == []
    assert args.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_where_the_processor_has_it(has, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.reward_modeling.config.cpu_has_bfloat16", lambda: has)
    assert RewardConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is has
    assert RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=not has).bf16 is not has
    if not torch.accelerator.is_available():
        args = RewardConfig(output_dir=str(tmp_path))
        assert (args.bf16, args.use_cpu) == (has, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes is 0"),
        ({"min_gap": -1.0}, "min_gap -1"),
        ({"train_share": "half"}, "as in 0:0.6"),
        ({"max_length": 0}, "max_length is 0"),
        ({"debias": ["width"]}, "give names out of length, format, repetition"),
        ({"group_penalty": 1.0}, "a penalty of 0 or more together with its column"),
        ({"loss": "bradly_terry"}, "give one of auto, bradley_terry, hinge"),
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
