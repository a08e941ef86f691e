"""The estimate beside the peak of a real run: what takes minutes and not an hour.

Within 15% is the aim, and with adapters it is missed: 0.68 to 0.98 was seen (docs/memory.md), because the resident set
of a process is more than its tensors. The bounds here are those, so that neither side drifts away unseen.
"""

import json

import pytest

from benchmarks import memory


@pytest.mark.slow  # trains 31 million parameters with PPO, in processes of their own
@pytest.mark.parametrize("setup", ["lora", "qlora"])
def test_it_is_as_near_as_it_was_seen_to_be(setup, capsys):
    if setup == "qlora":
        pytest.importorskip("bitsandbytes")
    memory.main(["--sizes", "30M", "--setups", setup])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert 0.6 <= row["ratio"] <= 1.15
