"""Whole checkpoints and broken ones: files as the Trainer writes them, then really cut off."""

import logging
import os
import pickle
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from rlhf_recipes.checkpoints import check_best_metric, differences, find_checkpoint, why_broken


def write_checkpoint(folder):
    """The files of a checkpoint of a policy with adapters, a critic beside it and the states of the Trainer."""
    (folder / "critic").mkdir(parents=True)
    save_file({"a": torch.zeros(1000), "b": torch.ones(3)}, folder / "adapter_model.safetensors")
    save_file({"weight": torch.zeros(1, 32)}, folder / "critic/value_head.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 2}')
    (folder / "merges.txt").write_text("")  # of a tokenizer without merges
    torch.save({"state": {0: {"exp_avg": torch.zeros(1000)}}}, folder / "optimizer.pt")
    torch.save({"last_epoch": 4}, folder / "scheduler.pt")
    torch.save({"python": (3, (1, 2), None)}, folder / "rng_state.pth")
    torch.save({"learning_rate": 1e-5}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    return folder


@pytest.fixture
def whole(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint-4")


def cut(file, size):
    os.truncate(file, size)
    return file


def test_a_whole_checkpoint_has_no_fault(whole):
    assert why_broken(whole) is None
    assert why_broken(str(whole), required=["optimizer.pt", "critic/value_head.safetensors"]) is None


@pytest.mark.parametrize(
    "name",
    [
        *("adapter_model.safetensors", "critic/value_head.safetensors", "optimizer.pt", "scheduler.pt"),
        *("rng_state.pth", "training_args.bin", "adapter_config.json", "trainer_state.json"),
    ],
)
def test_a_file_that_lacks_its_last_byte_or_all_of_them_is_named(whole, name):
    size = (whole / name).stat().st_size
    cut(whole / name, size - 1)
    assert why_broken(whole).startswith(name)
    cut(whole / name, 0)
    assert why_broken(whole) == f"{name} is empty"


def test_it_says_how_much_there_is(whole):
    # 8 bytes of length, a header of JSON padded to a multiple of 8, 1000 + 3 numbers of 4 bytes.
    (length,) = struct.unpack("<Q", (whole / "adapter_model.safetensors").read_bytes()[:8])
    cut(whole / "adapter_model.safetensors", 2000)
    assert why_broken(whole) == "adapter_model.safetensors is cut off after 2 kB of 4.1 kB"
    assert round((8 + length + 4012) / 1000, 1) == 4.1
    cut(whole / "adapter_model.safetensors", 20)
    assert why_broken(whole) == "adapter_model.safetensors is cut off after 20 bytes, in its header"
    cut(whole / "adapter_model.safetensors", 5)
    assert why_broken(whole) == "adapter_model.safetensors is cut off after 5 bytes, in its header"


def test_a_large_optimizer_that_is_cut_off_is_told_in_mb(whole):
    torch.save(torch.zeros(1_000_000), whole / "optimizer.pt")
    cut(whole / "optimizer.pt", 3_000_000)
    assert why_broken(whole) == "optimizer.pt is cut off after 3 MB"


def test_a_file_of_the_right_length_without_content_is_broken(whole):
    # As a crash of the machine leaves it: the length was written, the content was not.
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        before = (whole / name).read_bytes()
        (whole / name).write_bytes(bytes(len(before)))
        assert why_broken(whole).startswith(name)
        (whole / name).write_bytes(before)
    assert why_broken(whole) is None


def test_safetensors_with_bytes_too_many_or_a_strange_header(whole):
    file = whole / "adapter_model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before + b"abc")
    assert why_broken(whole) == "adapter_model.safetensors has 3 bytes too many"
    for header in (b'{"a": 1}', b"[1, 2, 3]", b"not json"):
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        assert why_broken(whole) == "adapter_model.safetensors has no header of safetensors"


def test_files_of_torch_before_1_6_are_accepted_whole_and_refused_cut(whole):
    torch.save({"a": torch.zeros(3)}, whole / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert why_broken(whole) is None
    cut(whole / "optimizer.pt", 60)
    assert why_broken(whole) == "optimizer.pt is cut off after 60 bytes"
    (whole / "optimizer.pt").write_bytes(pickle.dumps({"a": [1, 2, 3]}))
    assert why_broken(whole) is None


def test_other_files_named_bin_are_left_alone_and_others_named_pt_are_not(whole):
    (whole / "words.bin").write_bytes(b"\x01\x02")
    assert why_broken(whole) is None
    (whole / "optimizer.pt").write_bytes(b"half")
    assert why_broken(whole) == "optimizer.pt is neither a zip file nor a pickle, as torch would write it"


def test_nothing_is_unpickled(whole):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(whole / "exploded"),)

    (whole / "optimizer.pt").write_bytes(pickle.dumps(Bomb()))
    assert why_broken(whole) is None
    assert not (whole / "exploded").exists()


def test_a_missing_state_required_file_or_shard_is_named(whole):
    index = '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
    (whole / "model.safetensors.index.json").write_text(index)
    save_file({"a": torch.zeros(1)}, whole / "model-1-of-2.safetensors")
    assert why_broken(whole) == ("model.safetensors.index.json names model-2-of-2.safetensors, which is not there")
    assert why_broken(whole, ["ppo_state.pt", "optimizer.pt"]) == "it has no ppo_state.pt"
    (whole / "trainer_state.json").unlink()
    assert why_broken(whole) == "it has no trainer_state.json, which is written last"


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", "null"])
def test_a_state_must_hold_something(whole, content):
    (whole / "trainer_state.json").write_text(content)
    assert why_broken(whole) == "trainer_state.json holds no state of a Trainer"


def test_hidden_files_are_nobodys(whole):
    (whole / ".metrics.json.x1").write_text("{")
    (whole / ".cache").mkdir()
    (whole / ".cache/a.json").write_text("")
    assert why_broken(whole) is None


def test_folders_of_deepspeed(whole):
    step = whole / "global_step4"
    step.mkdir()
    states = step / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"a": torch.zeros(300)}, states)
    assert why_broken(whole) == "global_step4 is not finished: the file latest does not name it"
    (whole / "latest").write_text("global_step4")
    assert why_broken(whole) is None
    cut(states, 500)
    assert why_broken(whole) == f"global_step4/{states.name} is cut off after 500 bytes"
    states.unlink()
    assert why_broken(whole) == "latest names global_step4, which is not there"
    (whole / "latest").write_text("")
    assert why_broken(whole) == "global_step4 is not finished: the file latest does not name it"


# ---- finding one


def run_with(tmp_path, *steps):
    return [write_checkpoint(tmp_path / f"checkpoint-{step}") for step in steps]


def warnings_in(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_auto_takes_the_last_and_says_nothing(tmp_path, caplog):
    run_with(tmp_path, 4, 8, 12)
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-12")
    assert warnings_in(caplog) == []


def test_auto_without_any_checkpoint_is_the_beginning(tmp_path):
    assert find_checkpoint(tmp_path, "auto") is None
    assert find_checkpoint(tmp_path / "not/there", "auto") is None
    assert find_checkpoint(tmp_path, None) is None


def test_auto_goes_back_to_the_last_whole_one_and_says_so(tmp_path, caplog):
    _, middle, last = run_with(tmp_path, 8, 10, 12)
    torch.save(torch.zeros(1_000_000), last / "optimizer.pt")
    cut(last / "optimizer.pt", 3_000_000)
    (middle / "trainer_state.json").unlink()
    assert find_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-8")
    assert warnings_in(caplog) == [
        "checkpoint-12 is not whole: optimizer.pt is cut off after 3 MB; "
        "checkpoint-10 is not whole: it has no trainer_state.json, which is written last; going on from checkpoint-8"
    ]
    assert (last / "optimizer.pt").stat().st_size == 3_000_000  # nothing is deleted


def test_a_required_file_counts_for_auto(tmp_path, caplog):
    first, _ = run_with(tmp_path, 4, 8)
    torch.save({}, first / "ppo_state.pt")
    assert find_checkpoint(tmp_path, "auto", required=["ppo_state.pt"]) == str(first)
    assert warnings_in(caplog) == ["checkpoint-8 is not whole: it has no ppo_state.pt; going on from checkpoint-4"]


def test_auto_refuses_to_begin_anew_where_all_are_broken(tmp_path):
    for folder in run_with(tmp_path, 4, 8):
        cut(folder / "optimizer.pt", 100)
    with pytest.raises(
        ValueError, match="No checkpoint in .* is whole: checkpoint-8 .*100 bytes; checkpoint-4 .*anew"
    ):
        find_checkpoint(tmp_path, "auto")


@pytest.mark.parametrize("left", [None, "", '{"global_st'], ids=["not there", "empty", "cut off"])
def test_where_none_was_ever_finished_auto_begins_anew_and_says_so(tmp_path, caplog, left):
    for folder in run_with(tmp_path, 4, 8):
        (folder / "trainer_state.json").unlink()
        if left is not None:
            (folder / "trainer_state.json").write_text(left)
    (tmp_path / "interrupted-checkpoint-4").mkdir()  # of an earlier start
    assert find_checkpoint(tmp_path, "auto") is None
    (said,) = warnings_in(caplog)
    assert said.startswith("No checkpoint was ever finished (checkpoint-8 is not whole: ")
    assert "it is kept as interrupted-checkpoint-8" in said
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["interrupted-checkpoint-4", "interrupted-checkpoint-4-2", "interrupted-checkpoint-8"]
    assert (tmp_path / "interrupted-checkpoint-8/optimizer.pt").is_file()  # nothing is deleted
    assert find_checkpoint(tmp_path, "auto") is None


def test_only_the_first_process_renames(tmp_path, monkeypatch):
    (folder,) = run_with(tmp_path, 4)
    (folder / "trainer_state.json").unlink()
    monkeypatch.setenv("RANK", "1")
    assert find_checkpoint(tmp_path, "auto") is None
    assert folder.is_dir()


def test_a_broken_one_that_was_named_is_refused_with_the_last_whole_one(tmp_path):
    first, second = run_with(tmp_path, 4, 8)
    cut(second / "optimizer.pt", 100)
    assert find_checkpoint(tmp_path, str(first)) == str(first)
    with pytest.raises(
        ValueError, match=r"checkpoint-8' is not whole: optimizer.pt is cut .* whole is .*checkpoint-4\."
    ):
        find_checkpoint(tmp_path, str(second))
    with pytest.raises(FileNotFoundError, match=r"checkpoint-9' is no checkpoint\. .* whole is .*checkpoint-4\."):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9"))


@pytest.mark.parametrize("is_broken", [False, True])
def test_without_asking_an_earlier_run_is_in_the_way(tmp_path, is_broken):
    (folder,) = run_with(tmp_path, 4)
    if is_broken:
        cut(folder / "optimizer.pt", 100)
    with pytest.raises(FileExistsError, match="checkpoint-4 is .* --resume_from_checkpoint auto"):
        find_checkpoint(tmp_path, None)


# ---- what has changed


def test_differences_are_lines_that_name_both_values():
    saved = {
        "learning_rate": 1e-05,
        "seed": 1,
        "old": "x",
        "output_dir": "a",
        "betas": [0.9, 0.99],
        "bad": float("nan"),
    }
    now = {
        "learning_rate": 3e-06,
        "seed": 1,
        "new": None,
        "output_dir": "b",
        "betas": (0.9, 0.99),
        "bad": float("nan"),
    }
    assert differences(saved, now, {"output_dir"}) == [
        "learning_rate: 1e-05 in the checkpoint, 3e-06 now",
        "old: 'x' in the checkpoint, not given now",
        "new: not in the checkpoint, None now",
    ]


def test_differences_look_into_mappings_and_tell_true_from_1():
    saved = {"sampling": {"top_k": 0, "seed": 1, "deep": {"a": 1}}, "flag": True, "count": 1}
    now = {"sampling": {"top_k": 50, "seed": 2, "deep": {"a": 2}}, "flag": 1, "count": 1.0}
    assert differences(saved, now, {"sampling.seed", "sampling.deep.a"}) == [
        "sampling.top_k: 0 in the checkpoint, 50 now",
        "flag: True in the checkpoint, 1 now",
    ]
    assert differences(saved, saved) == []


@pytest.mark.parametrize(("metric", "refused"), [(None, True), ("loss", True), ("eval_mine_loss", False),
                                                 ("mine_objective/scores", False), ("others_loss", True)])  # fmt: skip
def test_the_best_of_several_sets_needs_the_figure_of_one(metric, refused):
    args = SimpleNamespace(load_best_model_at_end=True, save_strategy="steps", metric_for_best_model=metric)
    sets = {"mine": None, "other": None}
    check_best_metric(args, None)
    check_best_metric(SimpleNamespace(**{**vars(args), "load_best_model_at_end": False}), sets)
    if refused:
        with pytest.raises(ValueError, match="2 evaluation sets .*'mine', 'other'.*metric_for_best_model='mine_"):
            check_best_metric(args, sets)
    else:
        check_best_metric(args, sets)
