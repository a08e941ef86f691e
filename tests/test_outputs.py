import json
import os

import pytest

from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json, write_jsonl


def test_a_new_or_empty_folder_is_made_and_marked(tmp_path):
    folder = prepare_output_dir(tmp_path / "runs/one", "reward")
    assert (folder / ".recipe").read_text() == "reward\n"
    (tmp_path / "empty").mkdir()
    prepare_output_dir(tmp_path / "empty", "reward")


def test_an_earlier_run_of_the_same_recipe_is_written_over_and_nothing_deleted(tmp_path):
    prepare_output_dir(tmp_path / "run", "reward")
    (tmp_path / "run/metrics.json").write_text("{}")
    assert prepare_output_dir(tmp_path / "run", "reward").joinpath("metrics.json").exists()


def test_what_is_not_ours_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "config.yaml").write_text("of something else")
    with pytest.raises(FileExistsError, match=r"holds other things \(config.yaml, thesis.txt\)"):
        prepare_output_dir(tmp_path, "reward")
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "thesis.txt"]
    prepare_output_dir(tmp_path, "reward", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_run_of_another_recipe_is_refused(tmp_path):
    prepare_output_dir(tmp_path, "ppo")
    with pytest.raises(FileExistsError, match="holds a run of the recipe 'ppo', and not an earlier run of 'reward'"):
        prepare_output_dir(tmp_path, "reward")


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        prepare_output_dir(tmp_path / "file", "reward")


def test_json_is_written_at_once_or_not_at_all(tmp_path):
    path = write_json(tmp_path / "new/metrics.json", {"name": "é", "value": 0.5})
    assert json.loads(path.read_text()) == {"name": "é", "value": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"name": "é", "value": 0.5}
    write_json(path, {"value": 1})
    assert os.listdir(path.parent) == ["metrics.json"]  # no temporary file is left
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()


def test_jsonl_has_one_object_per_line(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ({"row": row} for row in range(2)))
    assert path.read_text() == '{"row": 0}\n{"row": 1}\n'


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_json(tmp_path / "metrics.json", {"value": 1})
    monkeypatch.setattr(os, "replace", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_peak_memory_is_in_gigabytes():
    assert 0.01 < peak_memory_gb()["peak_memory_gb"] < 1000


def _interrupt(*args):
    raise KeyboardInterrupt


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
