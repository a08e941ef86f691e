"""`recipes/reward_ensemble.py` and what it trains, in process, on tiny models and data."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from rlhf_recipes.rewards.combine.shared_ensemble import SharedBaseEnsemble
from rlhf_recipes.rewards.learned import LearnedReward
from tests.recipes.tiny_runs import check_page, equal, load_main, read, write_rows
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

VALUES = {"good": 2, "great": 3, "fine": 1, "bad": -2, "dull": -1, "awful": -3, "film": 0, "plot": 0, "cast": 0}
FAST = ["--use_cpu", "--bf16", "false", "--disable_tqdm", "true", "--learning_rate", "1e-2", "--max_steps", "6"]
FAST += ["--per_device_train_batch_size", "8", "--save_strategy", "no"]
LORA = ["--use_peft", "--lora_target_modules", "all-linear", "--lora_r", "4"]


@pytest.fixture(scope="module")
def main():
    return load_main("reward_ensemble")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


def draw_rating(generator):
    words = [generator.choice(list(VALUES)) for _ in range(5)]
    score = max(-4, min(4, sum(VALUES[word] for word in words) / 2))
    return {"completion": " ".join(words), "score": score, "votes": [max(-4, score - 1), score, min(4, score + 1)]}


def draw_pair(generator):
    one, other = sorted((draw_rating(generator) for _ in range(2)), key=lambda row: -row["score"])
    return {"chosen": one["completion"], "rejected": other["completion"] + " bad"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Bases without a head: an encoder and a decoder; ratings and pairs."""
    folder, generator = tmp_path_factory.mktemp("ensemble"), random.Random(0)
    bert, llama = tiny_tokenizer("bert"), tiny_tokenizer("llama", chat_template=True)
    save_tiny(folder / "bert", tiny_classifier(bert).bert, bert)
    save_tiny(folder / "llama", tiny_causal_lm(llama), llama)
    for name, draw in (("ratings", draw_rating), ("pairs", draw_pair)):
        for split, count in (("train", 96), ("validation", 20), ("test", 20)):
            write_rows(folder / name / f"{split}.jsonl", [draw(generator) for _ in range(count)])
    return folder


def command(place, out, data="ratings", base="bert", members=2):
    names = ["--dataset_name", str(place / data), "--model_name_or_path", str(place / base), "--output_dir", str(out)]
    return [*names, *FAST, *LORA, "--num_members", str(members)]


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_members_load_alone_and_together_with_the_scores_that_were_measured(main, place, base, tmp_path):
    out = tmp_path / "out"
    main(command(place, out, base=base))
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 20

    # By hand: each adapter through PEFT, one text at a time, and the mean and std that the folder names.
    settings, tokenizer = read(out, "ensemble.json"), AutoTokenizer.from_pretrained(out)
    end = tokenizer.eos_token if base == "llama" else ""
    for index in range(2):
        adapter = out / f"adapter_{index}"
        model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=1).eval()
        model.config.pad_token_id = tokenizer.pad_token_id
        with torch.no_grad():
            logits = [model(**tokenizer(row["text"] + end, return_tensors="pt")).logits.item() for row in rows[:5]]
        z = [(logit - settings["means"][index]) / settings["stds"][index] for logit in logits]
        assert z == pytest.approx([row["members"][index] for row in rows[:5]], abs=1e-4)
    assert max(row["disagreement"] for row in rows) > 1e-3

    ensemble = SharedBaseEnsemble(out, reduce="min")
    texts = [row["text"] for row in rows]
    assert ensemble([""] * 20, texts) == pytest.approx([min(row["members"]) for row in rows], abs=1e-4)
    metrics, report = read(out, "metrics.json"), read(out, "uncertainty.json")
    assert {"pairwise_accuracy", "pearson", "member_accuracy", "gain_over_member", "ece_ensemble"} <= set(metrics)
    assert (metrics["members"], metrics["train_rows"]) == (2, 96)
    accuracies = [report["scorers"][f"adapter_{index}"]["pairwise_accuracy"] for index in range(2)]
    assert metrics["member_accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["pairwise_accuracy"] == pytest.approx(report["scorers"]["mean"]["pairwise_accuracy"])
    assert (out / "uncertainty.png").stat().st_size > 5000
    # A decoder that six steps have taught nothing has no curve from scores to ratings, and so no distance from them.
    drawn = ["Texts: error by disagreement"] if base == "bert" else []
    check_page(out, "pairwise_accuracy", "member_accuracy", says=("Uncertainty", *drawn))
    # The average is a model of its own, calibrated to ratings.
    assert all(-4 <= score <= 4 for score in LearnedReward(out / "average")([""] * 20, texts))


def test_a_member_is_what_a_run_of_its_own_trains(main, place, tmp_path):
    """Seed 1 of the ensemble that starts at 0, and recipes/reward.py with seed 1."""
    main([*command(place, tmp_path / "out"), "--seed", "0"])
    flags = command(place, tmp_path / "alone")[: -len(["--num_members", "2"])]
    load_main("reward")([*flags, "--seed", "1"])
    alone = load_file(tmp_path / "alone/adapter/adapter_model.safetensors")
    members = [load_file(tmp_path / f"out/adapter_{index}/adapter_model.safetensors") for index in range(2)]
    assert alone.keys() == members[1].keys()
    for name, tensor in alone.items():
        assert members[1][name] == pytest.approx(tensor, abs=1e-6), name
        assert not torch.equal(members[0][name], tensor), name


def test_plain_pairs_and_rows_of_their_own(main, place, tmp_path):
    out = tmp_path / "out"
    flags = [*command(place, out, "pairs", "llama"), "--member_rows", "bootstrap", "--member_share", "0.5"]
    main([*flags, "--shared_head"])
    metrics, members = read(out, "metrics.json"), [read(out / f"adapter_{index}", "member.json") for index in range(2)]
    assert (metrics["loss"], metrics["pairs"]) == ("bradley_terry", 20)
    assert [member["rows"] for member in members] == [48, 48]
    assert members[0]["made_from"]["rows"] != members[1]["made_from"]["rows"]
    assert read(out, "uncertainty.json")["pairs"]["unanimous"]["pairs"] > 0
    assert (out / "average/model.safetensors").exists()


def test_a_run_that_was_cut_short_goes_on_with_what_is_missing(main, place, tmp_path, capsys):
    out = tmp_path / "out"
    main(command(place, out))
    weights = [load_file(out / f"adapter_{index}/adapter_model.safetensors") for index in range(2)]
    # As if it had been killed while it trained its second member: what comes after is not there.
    for name in ("adapter_1", "average"):
        shutil.rmtree(out / name)
    (out / "ensemble.json").unlink()
    (out / ".adapter_1").mkdir()
    (out / ".adapter_1/left.txt").write_text("half")
    with pytest.raises(FileNotFoundError, match="not finished: it has adapter_0, but"):
        SharedBaseEnsemble(out)
    kept = (out / "adapter_0/adapter_model.safetensors").stat().st_mtime_ns
    main(command(place, out))
    assert (out / "adapter_0/adapter_model.safetensors").stat().st_mtime_ns == kept
    for index in range(2):
        assert equal(load_file(out / f"adapter_{index}/adapter_model.safetensors"), weights[index])
    assert not (out / ".adapter_1").exists()
    assert not (out / ".probe").exists()
    # More members later: the two stay.
    main(command(place, out, members=3))
    assert (out / "adapter_0/adapter_model.safetensors").stat().st_mtime_ns == kept
    assert read(out, "ensemble.json")["members"] == 3


def test_members_that_were_made_in_another_way_are_not_mixed_in(main, place, tmp_path):
    out = tmp_path / "out"
    main(command(place, out))
    with pytest.raises(ValueError, match=r"adapter_0 was trained with lora_r 4, and now it is 8: members made in"):
        main([*command(place, out), "--lora_r", "8"])
    with pytest.raises(ValueError, match="adapter_0 was trained with rows"):
        main([*command(place, out), "--max_train_samples", "50"])


@pytest.mark.parametrize("shared", [False, True])
def test_a_pooler_that_is_new_belongs_to_the_member(main, place, shared, tmp_path):
    """It is not in the files of the base, so it is drawn, trained and saved as the head is."""
    tokenizer = tiny_tokenizer("bert")
    whole = tiny_classifier(tokenizer).bert
    bare = BertModel(whole.config, add_pooling_layer=False)
    bare.load_state_dict(whole.state_dict(), strict=False)
    save_tiny(tmp_path / "bare", bare, tokenizer)
    shutil.copytree(place / "ratings", tmp_path / "ratings")
    own = ["--lora_target_modules", "query", "value", "--shared_head", str(shared).lower(), "--seed", "0"]
    main([*command(tmp_path, tmp_path / "out", base="bare"), *own])
    members = [load_file(tmp_path / f"out/adapter_{index}/adapter_model.safetensors") for index in range(2)]
    pooler = next(name for name in members[0] if name.endswith("pooler.dense.weight"))
    assert not torch.equal(members[0][pooler], members[1][pooler])
    if not shared:
        flags = command(tmp_path, tmp_path / "alone", base="bare")[: -len(["--num_members", "2"])]
        load_main("reward")([*flags, *own[:3], "--seed", "1"])
        alone = load_file(tmp_path / "alone/adapter/adapter_model.safetensors")
        assert members[1][pooler] == pytest.approx(alone[pooler], abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--use_peft", "false"], "adapters on one base: give --use_peft"),
        (["--resume_from_checkpoint", "true"], "An ensemble goes on by itself"),
        (["--num_frozen_layers", "1"], "give lora_num_layers"),
    ],
)
def test_what_an_ensemble_cannot_do_is_said(main, place, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        main([*command(place, tmp_path / "out"), *flags])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_members", "1"], "one model has nobody to disagree with. Give 2 or more"),
        (["--member_share", "0"], "give more than 0, and 1 at most"),
        (["--member_rows", "some"], "invalid choice"),
    ],
)
def test_options_that_cannot_be_are_refused(main, place, tmp_path, flags, words, capsys):
    with pytest.raises(SystemExit):
        main([*command(place, tmp_path / "out"), *flags])
    assert words in capsys.readouterr().err


def chat(split):
    return [
        {"prompt": [{"role": "user", "content": f"Is {word} of {split} good?"}],
         "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}
        for word in list(VALUES)[:8]
    ]  # fmt: skip


def test_members_are_told_what_the_template_is_told_and_a_row_that_it_refuses_is_named(main, tmp_path):
    tokenizer = tiny_tokenizer("llama")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = f"{refuses}{CHAT_TEMPLATE}{{% if think %}}{{{{ ' thinking' }}}}{{% endif %}}"
    save_tiny(tmp_path / "base", tiny_causal_lm(tokenizer), tokenizer)
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"chats/{split}.jsonl", chat(split))
    main([*command(tmp_path, tmp_path / "out", "chats", "base"), "--chat_template_kwargs", '{"think": true}'])
    for index in range(2):
        assert read(tmp_path / f"out/adapter_{index}", "reward_config.json")["chat_template_kwargs"] == {"think": True}
    reward, row = SharedBaseEnsemble(tmp_path / "out"), chat("test")[0]
    given = {"prompts": [row["prompt"]], "completions": [row["chosen"]]}
    by_column = [reward(**given, chat_template_kwargs=[{"think": on}]) for on in (True, False)]
    assert reward(**given) == by_column[0] != by_column[1]

    bad = chat("train")
    bad[5]["prompt"] = [{"role": "system", "content": "Be brief"}]
    write_rows(tmp_path / "chats/train.jsonl", bad)
    with pytest.raises(ValueError, match=r"chats \(split 'train'\), row 5, .*no system"):
        main(command(tmp_path, tmp_path / "again", "chats", "base"))
