import pytest

from .helpers import REWARDS_FILE, ROWS, write


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "my_rewards.py").write_text(REWARDS_FILE)
    write("rows.jsonl", ROWS)
