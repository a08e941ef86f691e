"""Texts for a language model: what is read, what is measured, and what is too little."""

import math

import pytest
import torch

from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.material import LanguageMaterial, quality_of
from rlhf_recipes.compression.measured import Measured
from rlhf_recipes.data.loading import DataArguments
from tests.recipes.tiny_runs import write_splits
from tests.tiny import tiny_causal_lm, tiny_tokenizer

ROWS = [{"prompt": f"The film {row}", "completion": f" is good and long {row}"} for row in range(8)]


def material(folder, rows=ROWS, **options):
    given = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "per_device_eval_batch_size": 3}
    args = CompressConfig(output_dir=str(folder / "out"), **given | options)
    data = DataArguments(write_splits(folder / "rows", rows))
    return LanguageMaterial(data, args, tiny_tokenizer("llama"), torch.device("cpu"))


def test_a_text_is_prompt_and_completion_with_its_end(tmp_path):
    made = material(tmp_path)
    ids = made.train["input_ids"][0]
    assert ids[-1] == made.tokenizer.eos_token_id
    assert made.tokenizer.decode(ids, skip_special_tokens=True).endswith("The film 0 is good and long 0")
    assert len(material(tmp_path, max_length=4).train["input_ids"][0]) == 4


def test_figures_are_those_of_single_texts(tmp_path):
    """One text at a time, without padding."""
    made = material(tmp_path)
    model = tiny_causal_lm(made.tokenizer).eval()
    total, right, count = 0.0, 0, 0
    for ids in made.train["input_ids"]:
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total -= sum(float(row[word]) for row, word in zip(said, ids[1:], strict=True))
        right += sum(int(row.argmax()) == word for row, word in zip(said, ids[1:], strict=True))
        count += len(ids) - 1
    figures = Measured.from_dict(made.measure(model)).figures
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert figures["token_accuracy"] == pytest.approx(right / count)
    assert 0 <= figures["order_accuracy"] <= 1


def test_a_seed_draws_the_calibration_and_leaves_the_test_rows(tmp_path):
    first, second = (material(tmp_path, seed=seed, calibration_rows=3) for seed in (0, 1))
    assert not torch.equal(first.calibration[0]["input_ids"], second.calibration[0]["input_ids"])
    assert first.test == second.test


def test_a_single_text_is_too_little(tmp_path):
    with pytest.raises(ValueError, match="There are 1 training texts of two tokens or more.*give 2 or more"):
        material(tmp_path, rows=ROWS[:1])


def test_a_reward_is_the_mean_over_completions_that_are_the_same_each_time(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def count(completion_ids, **kwargs):\n    return [len(i) for i in completion_ids]\n"
    )
    made = material(tmp_path, quality="reward", quality_map="exp", reward_funcs=[f"{tmp_path / 'mine.py'}:count"],
                    max_completion_length=5, calibration_rows=4)  # fmt: skip
    quality = quality_of(made, made.args)
    model = tiny_causal_lm(made.tokenizer).eval()
    value = quality.of(model, made.calibration)
    assert 1 <= value <= 5
    assert quality.of(model, made.calibration) == value
    assert not quality.nonnegative
