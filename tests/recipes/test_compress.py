"""`recipes/compress.py`, run in process on tiny models: what it leaves behind, going on, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_recipes.compression import cells
from rlhf_recipes.compression.search.loop import Search
from rlhf_recipes.report import write_report
from rlhf_recipes.rewards.learned import LearnedReward
from tests.recipes.tiny_runs import check_page, equal, flags, load_main, make_place, read, write_rows

SMALL = {
    "max_train_samples": 12,
    "evaluations": 12,
    "budgets": 0.6,
    "methods": ["search", "magnitude"],
    "head_shares": [1.0, 0.5],
    "neuron_shares": [1.0, 0.75, 0.5],
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "samples": 3,
    "latency_seconds": 0.0,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
ALL = ["search", "random", "magnitude", "wanda", "shortgpt", "greedy", "ilp"]
LORA = ["--use_peft", "--lora_r", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def language(place, out, **options):
    return flags(SMALL | {"model_name_or_path": place / "policy", "dataset_name": place / "ratings",
                          "output_dir": place / out} | options, *LORA)  # fmt: skip


@pytest.fixture(scope="module")
def run(place):
    """Of a language model, by every method."""
    load_main("compress")(language(place, "whole", methods=ALL))
    return place / "whole"


# ---- a language model


def test_a_smaller_model_loads_in_plain_transformers_and_writes(run, place):
    original, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (place / "policy", run))
    assert type(model) is type(original)
    assert model.num_parameters() < original.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(place / "policy").get_vocab()
    written = model.generate(**tokenizer("The film", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert written.shape[1] > 2


def test_each_method_has_its_cell_within_the_budget(run):
    found = read(run, "compression.json")["cells"]
    assert [cell["method"] for cell in found] == ALL
    for cell in found:
        assert cell["cost"] <= 0.6 * (1 + 1e-9)
        model = AutoModelForCausalLM.from_pretrained(run / "cells" / f"{cell['method']}-60" / "model")
        assert model.config.num_hidden_layers == sum(layer is not None for layer in cell["structure"]["layers"])
        assert model.num_parameters() == cell["costs"]["parameters"]
        assert [row["epoch"] for row in cell["log"] if "quality" in row] == [1.0, 2.0]
        assert cell["first_against_this"]["perplexity"] if cell["method"] != "search" else True
    by_name = {cell["method"]: cell for cell in found}
    assert by_name["search"]["evaluations"] <= 12
    assert by_name["search"]["reward"] >= max(by_name[name]["reward"] for name in ("ilp", "shortgpt"))


def test_the_first_method_is_what_lies_in_the_folder(run):
    assert equal(load_file(run / "model.safetensors"), load_file(run / "cells/search-60/model/model.safetensors"))


def test_the_figures_are_those_of_the_saved_model(run, place):
    """Perplexity, worked anew by plain transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    total, count = 0.0, 0
    for line in (place / "ratings/test.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["completion"]).input_ids
        ids = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        with torch.no_grad():
            total += float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) * (len(ids) - 1)
        count += len(ids) - 1
    expected = torch.tensor(total / count).exp().item()
    assert read(run, "metrics.json")["healed_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_the_page_has_fronts_structures_samples_and_epochs_and_can_be_written_again(run):
    says = [
        "Quality against cost",
        "layer by layer",
        "Before and after",
        "Epoch by epoch",
        "search against the others",
        "Perplexity against bytes",
        "Perplexity against time of a pass",
    ]
    check_page(run, "healed_perplexity", "evaluations", says=says + ALL)
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert write_report(run).read_bytes() == before


def test_what_came_out_goes_in_again(run, place):
    load_main("compress")(language(place, "again", model_name_or_path=run, methods="magnitude", budgets=0.9,
                                   heal=False))  # fmt: skip
    assert read(place / "again", "metrics.json")["original_perplexity"] == pytest.approx(
        read(run, "metrics.json")["healed_perplexity"], rel=1e-5
    )


# ---- going on


class Stopped(Exception):
    pass


def test_a_search_that_was_stopped_and_goes_on_is_one_that_was_not(run, place, monkeypatch):
    steps, real = [], Search.step

    def step(self):
        steps.append(1)
        if len(steps) == 2:
            raise Stopped
        return real(self)

    monkeypatch.setattr(Search, "step", step)
    with pytest.raises(Stopped):
        load_main("compress")(language(place, "stopped", methods="search"))
    assert not (place / "stopped/cells/search-60/structure.json").exists()
    monkeypatch.setattr(Search, "step", real)
    load_main("compress")(language(place, "stopped", methods="search", resume_from_checkpoint="auto"))
    (mine, *_), (whole, *_) = (read(folder, "compression.json")["cells"] for folder in (place / "stopped", run))
    for key in ("structure", "search_log", "front", "quality", "reward", "evaluations", "after"):
        assert mine[key] == whole[key], key


def test_a_healing_that_was_stopped_and_goes_on_is_one_that_was_not(run, place, monkeypatch):
    """Stopped in its second epoch, after a checkpoint: weights are the same to the bit."""
    real, steps = cells.heal, []

    def stopping(*args, **kwargs):
        from rlhf_recipes.compression.heal import HealTrainer

        inner = HealTrainer.compute_loss

        def compute_loss(self, *of, **more):
            steps.append(1)
            if len(steps) == 5:  # of 3 in an epoch
                raise Stopped
            return inner(self, *of, **more)

        with monkeypatch.context() as patch:
            patch.setattr(HealTrainer, "compute_loss", compute_loss)
            return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "heal", stopping)
        with pytest.raises(Stopped):
            load_main("compress")(language(place, "half", methods="search"))
    assert (place / "half/cells/search-60/checkpoint-3").is_dir()
    load_main("compress")(language(place, "half", methods="search", resume_from_checkpoint="auto"))
    assert equal(load_file(place / "half/model.safetensors"), load_file(run / "model.safetensors"))


def test_an_earlier_run_is_gone_on_with_only_where_asked_for_and_with_the_same_settings(run, place):
    with pytest.raises(FileExistsError, match="resume_from_checkpoint auto"):
        load_main("compress")(language(place, "whole", methods=ALL))
    with pytest.raises(ValueError, match="evaluations: 12 in the checkpoint, 10 now"):
        load_main("compress")(language(place, "whole", methods=ALL, evaluations=10, resume_from_checkpoint="auto"))


# ---- reward models


def reward(place, out, **options):
    return flags(
        SMALL
        | {
            "model_name_or_path": place / "judge",
            "dataset_name": place / "ratings",
            "output_dir": place / out,
            "methods": "shortgpt",
            "num_train_epochs": 1,
        }
        | options
    )


@pytest.mark.parametrize("lora", [pytest.param([], marks=pytest.mark.slow), LORA], ids=["whole", "lora"])
def test_a_reward_model_goes_in_and_comes_out_and_is_one(place, lora):
    out = f"small-judge-{len(lora)}"
    load_main("compress")([*reward(place, out), *lora])
    model = AutoModelForSequenceClassification.from_pretrained(place / out)
    assert model.config.num_labels == 1
    assert model.config.num_hidden_layers == 1
    score = LearnedReward(place / out, calibrate=False)
    samples = read(place / out, "compression.json")["cells"][0]["samples"]
    assert score(["", ""], [row["completion"] for row in samples[:2]]) == pytest.approx(
        [row["scores"]["score"] for row in samples[:2]], abs=2e-4
    )
    metrics = read(place / out, "metrics.json")
    assert {"pairwise_accuracy", "healed_pairwise_accuracy", "healed_log_loss"} <= metrics.keys()
    check_page(place / out, "healed_pairwise_accuracy", says=["order against parameters"])
    # And into the next recipe.
    load_main("reward")(
        flags(
            {
                "model_name_or_path": place / out,
                "dataset_name": place / "ratings",
                "max_steps": 1,
                "output_dir": place / f"trained-{out}",
                "use_cpu": True,
                "bf16": False,
                "card": False,
                "per_device_train_batch_size": 4,
                "save_strategy": "no",
                "disable_tqdm": True,
            }
        )
    )
    assert (place / f"trained-{out}" / "model.safetensors").is_file()


def test_a_classifier_of_good_and_bad_has_its_accuracy_for_each_epoch(place):
    texts = [f"The film is {'good ' * (row % 3)}and {row} minutes {'long ' * (row % 4)}" for row in range(16)]
    judge, tokenizer = (
        auto.from_pretrained(place / "judge") for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    with torch.no_grad():
        scores = judge.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        judge.classifier.bias -= scores.median()  # half of the texts are good to it, and the labels say so too
    judge.save_pretrained(place / "thumbs-judge")
    tokenizer.save_pretrained(place / "thumbs-judge")
    rows = [{"completion": t, "label": bool(s > scores.median())} for t, s in zip(texts, scores, strict=True)]
    for split in ("train", "test"):
        write_rows(place / f"thumbs/{split}.jsonl", rows)
    options = {"dataset_name": place / "thumbs", "model_name_or_path": place / "thumbs-judge", "quality": "accuracy"}
    load_main("compress")(reward(place, "thumbs-out", **options, num_train_epochs=3, max_train_samples=16))
    (cell,) = read(place / "thumbs-out", "compression.json")["cells"]
    epochs = [row for row in cell["log"] if "quality" in row]
    assert len(epochs) == 3
    for row in epochs:
        assert (row["quality"] * 16) % 1 == pytest.approx(0)  # a share of 16 rows
        assert row["reward"] == pytest.approx(row["quality"])  # within the budget, hinge is 1
    assert "accuracy" in cell["after"]


def test_any_reward_can_be_the_quality_with_a_named_map(place):
    options = {"quality": "reward", "quality_map": "sigmoid", "max_completion_length": 4,
               "methods": "ilp", "heal": False, "reward_funcs": f"{place / 'my_rewards.py'}:brevity"}  # fmt: skip
    options["quality_map"] = json.dumps({"rescale": [-1, 2]})
    argv = language(place, "rewarded", **options, calibration_rows=4)
    with pytest.raises(ValueError, match="constant cannot guide a search"):  # no completion has more than four tokens
        load_main("compress")(argv)
    assert not (place / "rewarded").exists()


# ---- what is refused, before anything is written


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budgets": 0.01}, "the smallest structure of the space costs"),
        ({"methods": "shortgpt", "budgets": 0.2}, "the smallest structure of the space costs"),
        ({"max_train_samples": 1}, "give 2 or more"),
        ({"model_name_or_path": "adapters"}, "holds adapters and not a whole model: merge them first"),
        ({"load_in_4bit": True}, "what stands for several weights cannot be cut"),
        ({"dataset_name": "colours"}, "colour"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(place, options, says):
    (place / "adapters").mkdir(exist_ok=True)
    (place / "adapters/adapter_config.json").write_text("{}")
    write_rows(place / "colours/train.jsonl", [{"colour": "red"}])
    named = {
        key: place / value if key in ("model_name_or_path", "dataset_name") else value
        for key, value in options.items()
    }
    with pytest.raises(ValueError, match=says):
        load_main("compress")(language(place, "refused", **named))
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quality": "reward", "reward_funcs": "Length"}, "give quality_map"),
        ({"quality": "reward"}, "one needs the other"),
        ({"methods": ["search", "magic"]}, "magic"),
        ({"budgets": 1.5}, "shares of the original"),
        ({"cost": "calories"}, "non_embedding_prefill_flops"),
        ({"calibration_rows": 1}, "2 or more"),
        ({"distill_weight": 2}, "distill_weight is 2"),
        ({"eval_strategy": "epoch"}, "has no effect here"),
        ({"resume_from_checkpoint": "checkpoint-5"}, "`auto`"),
    ],
)
def test_a_wrong_option_is_told_below_the_usage(place, options, says, capsys):
    with pytest.raises(SystemExit) as ended:
        load_main("compress")(language(place, "refused", **options))
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (place / "refused").exists()
