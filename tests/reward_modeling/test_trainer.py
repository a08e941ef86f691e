"""Both trainers: TRL's on pairs, and ours on all else, which must give the same where both can be used."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.trainer import OBJECTIVE_FILE, FeedbackTrainer, is_plain_pairs
from tests.reward_modeling.pair_trainer import trainer_of
from tests.tiny import tiny_classifier, tiny_tokenizer


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


# --- Ours --------------------------------------------------------------------------------------

SGD = {"optim": "sgd", "learning_rate": 0.1, "bf16": False, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
PAIRS = Dataset.from_list(
    [
        {
            "input_ids": [[10 + row, 20 + row, 5][: 1 + row % 3], [40 + row, 7, 8][: 1 + (row + 1) % 3]],
            "margin": 0.1 * row,
            "length": 3,
        }
        for row in range(8)
    ]
)
# Lists of 2 to 5 texts, so that micro-batches have different numbers of them.
LISTS = Dataset.from_list(
    [
        {
            "input_ids": [[10 + row + 3 * place, 5] for place in range(2 + row % 4)],
            "ranks": [float(1 + (place + row) % (2 + row % 4)) for place in range(2 + row % 4)],
            "size": float(2 + row % 4),
            "weight": 1.0 + row % 3,
            "length": 2,
        }
        for row in range(8)
    ]
)
# Every third label is missing.
LABELS = Dataset.from_list(
    [
        {"input_ids": [[10 + row, 5]], "label": float("nan") if row % 3 == 2 else float(row % 2), "length": 2}
        for row in range(8)
    ]
)


def ours(folder, loss, rows, model=None, fitted_to=None, held_out=None, **options):
    tokenizer = tiny_tokenizer("bert")
    objective = make_objective(loss)
    if fitted_to is not None:
        objective.fit(fitted_to)
    settings = {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "train_sampling_strategy": "sequential"}
    return FeedbackTrainer(
        model=model or tiny_classifier(tokenizer),
        args=RewardConfig(output_dir=str(folder), **(settings | SGD | options)),
        objective=objective,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=held_out,
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_on_pairs_it_learns_what_the_trainer_of_trl_learns(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    rows = [
        {"chosen_ids": row["input_ids"][0], "rejected_ids": row["input_ids"][1], "margin": row["margin"], "length": 3}
        for row in PAIRS
    ]
    options = {**SGD, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 4}
    theirs = trainer_of(tmp_path / "theirs", copy.deepcopy(model), tokenizer, rows=rows, **options)
    theirs.train()
    mine = ours(tmp_path / "ours", "bradley_terry", PAIRS, model=copy.deepcopy(model), per_device_train_batch_size=4)
    mine.train()
    assert largest_difference(weights(mine), weights(theirs)) < 1e-6
    assert largest_difference(weights(mine), before) > 1e-3
    last, of_trl = mine.state.log_history[-1], theirs.state.log_history[-1]
    for name in ("train_loss", "accuracy", "min_reward", "mean_reward", "max_reward"):
        assert last[name] == pytest.approx(of_trl[name], abs=0.01 if "reward" in name else 1e-6), name


@pytest.mark.parametrize(
    ("loss", "rows"), [("bradley_terry", PAIRS), ("plackett_luce", LISTS), ("binary_cross_entropy", LABELS)]
)
def test_micro_batches_change_nothing(loss, rows, tmp_path):
    model = tiny_classifier(tiny_tokenizer("bert"))
    runs = []
    for size in (8, 2, 1):
        trainer = ours(
            tmp_path / str(size),
            loss,
            rows,
            model=copy.deepcopy(model),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        trainer.train()
        runs.append((weights(trainer), trainer.state.log_history[-1]["train_loss"]))
    for other, loss_of_other in runs[1:]:
        assert largest_difference(runs[0][0], other) < 5e-6
        assert loss_of_other == pytest.approx(runs[0][1], abs=1e-5)


RATINGS = Dataset.from_dict({"completion": list("abcdefgh"), "score": [1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 2.0, 3.0]})


def rated(objective_name="ordinal"):
    objective = make_objective(objective_name)
    objective.fit(RATINGS)
    ids = [[[10 + row, 5]] for row in range(8)]
    return Dataset.from_dict({"input_ids": ids, **objective.targets(RATINGS), "length": [2] * 8})


def test_thresholds_are_learned_and_a_stopped_run_goes_on_with_them(tmp_path):
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
    options |= {"optim": "adamw_torch", "learning_rate": 0.05}
    whole = ours(tmp_path / "whole", "ordinal", rated(), fitted_to=RATINGS, **options)
    start = whole.objective.link.raw.detach().clone()
    whole.train()
    assert (whole.objective.link.raw - start).abs().max() > 0.01
    of_loss, last = (tmp_path / "whole/checkpoint-6" / name for name in (OBJECTIVE_FILE, "trainer_state.json"))
    assert of_loss.stat().st_mtime_ns <= last.stat().st_mtime_ns  # which says that the checkpoint is whole
    saved = load_file(tmp_path / "whole/checkpoint-6" / OBJECTIVE_FILE)["raw"]
    assert torch.equal(saved, whole.objective.link.raw.detach())
    again = ours(tmp_path / "again", "ordinal", rated(), fitted_to=RATINGS, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert torch.equal(again.objective.link.raw, whole.objective.link.raw)
    assert largest_difference(weights(again), weights(whole)) == 0.0


def test_evaluation_gives_the_mean_loss_and_how_much_is_right(tmp_path):
    trainer = ours(tmp_path, "binary_cross_entropy", LABELS, per_device_eval_batch_size=8)
    with torch.no_grad():
        batch = trainer.data_collator(list(LABELS))
        logits = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    figures = trainer.evaluate(LABELS)
    known = ~batch["targets"]["label"].isnan()
    labels, logits = batch["targets"]["label"][known], logits[known]
    by_torch = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert figures["eval_loss"] == pytest.approx(by_torch.item(), abs=1e-5)
    logged = trainer.state.log_history[-1]
    assert logged["eval_accuracy"] == pytest.approx(((logits > 0) == (labels > 0.5)).float().mean().item())


def test_a_model_with_another_number_of_outputs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="The model has 1 outputs, but the loss needs 3"):
        ours(tmp_path, "classification", rated("classification"), fitted_to=RATINGS)


def test_the_best_model_has_the_thresholds_that_belong_to_it(tmp_path):
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "save_strategy": "epoch"}
    options |= {"eval_strategy": "epoch", "load_best_model_at_end": True, "optim": "adamw_torch"}
    # The highest loss is called the best, so that it is not the last one.
    options |= {"learning_rate": 0.05, "held_out": rated(), "greater_is_better": True}
    trainer = ours(tmp_path, "ordinal", rated(), fitted_to=RATINGS, **options)
    trainer.train()
    best = load_file(Path(trainer.state.best_model_checkpoint) / OBJECTIVE_FILE)["raw"]
    assert torch.equal(trainer.objective.link.raw.detach(), best)
    last = load_file(tmp_path / "checkpoint-6" / OBJECTIVE_FILE)["raw"]
    assert not torch.equal(best, last)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("pairs_in_batch", {"per_device_train_batch_size": 1}, "per_device_train_batch_size is 1. Give 2 or more"),
        ("mse", {"center_rewards_coefficient": 0.1}, "center_rewards_coefficient is for bradley_terry"),
        ("process", {"debias": ["length"]}, "debias is for one score of a text"),
        ("pairs_in_batch", {"group_column": "side", "group_penalty": 1.0}, "Take the loss mse, mae or huber"),
        ("ordinal", {"group_column": "side", "group_penalty": 1.0}, "Take the loss mse, mae or huber"),
    ],
)
def test_options_that_a_loss_cannot_use_are_refused(loss, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ours(tmp_path, loss, PAIRS, **options)


@pytest.mark.parametrize(
    ("columns", "options", "plain"),
    [
        (["chosen", "rejected"], {}, True),
        (["chosen", "rejected", "margin"], {}, True),
        (["chosen", "rejected", "target"], {}, False),
        (["chosen", "rejected", "weight"], {}, False),
        (["chosen", "rejected", "chosen_votes", "rejected_votes"], {}, False),
        (["chosen", "rejected"], {"loss_args": {"label_smoothing": 0.1}}, False),
        (["completion", "score"], {}, True),
    ],
)
def test_only_pairs_that_are_right_or_wrong_go_through_the_trainer_of_trl(columns, options, plain, tmp_path):
    rows = Dataset.from_dict({name: ["a"] for name in columns})
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert is_plain_pairs("bradley_terry", rows, args) is plain
    assert is_plain_pairs("hinge", rows, args) is False or "score" in columns


def test_drawn_pairs_take_no_options_of_the_loss(tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, loss_args={"label_smoothing": 0.1})
    with pytest.raises(ValueError, match="draws pairs and takes neither"):
        is_plain_pairs("bradley_terry", Dataset.from_dict({"completion": ["a"], "score": [1.0]}), args)
