"""The estimate beside the peak of a real run: what takes minutes and not an hour."""

import json

import pytest

from benchmarks import memory


@pytest.mark.slow  # trains 31 million parameters with PPO, in processes of their own
@pytest.mark.parametrize("setup", ["lora", "qlora"])
def test_within_15_percent(setup, capsys):
    if setup == "qlora":
        pytest.importorskip("bitsandbytes")
    memory.main(["--sizes", "30M", "--setups", setup])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert 0.85 <= row["ratio"] <= 1.15
