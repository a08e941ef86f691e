"""`recipes/serve_reward.py`, as the process that a user starts, and in process for what it says and refuses."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx2
import pytest

from rlhf_recipes.rewards.remote import RemoteReward
from tests.recipes.tiny_runs import MY_REWARDS, RECIPES, load_main

ROWS = {"prompts": ["VADER is smart,", "It is"], "completions": [" handsome, and funny.", ""]}
# A reward that says that it was called, and gives its values when it may.
WAITING = """
import time
from pathlib import Path

def waiting(completions, **kwargs):
    Path("called").touch()
    while not Path("may_answer").exists():
        time.sleep(0.01)
    return [float(len(text)) for text in completions]
"""


@contextlib.contextmanager
def started(folder, *arguments):
    """The recipe as a process, and what its clients need, from the line that it prints."""
    process = subprocess.Popen(
        [sys.executable, str(RECIPES / "serve_reward.py"), *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # A shell that starts the tests in the background would have it ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = next(line for line in process.stdout if line.startswith("reward_funcs: "))
        (spec,) = json.loads(line.removeprefix("reward_funcs: "))
        assert spec["func"] == "RemoteReward"
        yield process, spec["args"]["url"]
    finally:
        process.kill()
        process.communicate()


def is_open(url):
    with socket.socket() as connection:
        return connection.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) == 0


def test_values_come_over_http_until_ctrl_c(tmp_path):
    with started(tmp_path, "--reward_funcs", "Vader", "EndsWithSentence", "--reward_weights", "1", "0.5") as server:
        process, url = server
        # VADER's own README: 0.8316.
        assert RemoteReward(url)(**ROWS) == pytest.approx([0.8316 + 0.5, 0.0], abs=1e-4)
        assert httpx2.get(url.replace("/score", "/health")).json()["parts"] == ["Vader", "EndsWithSentence"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Interrupted." in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_sigterm_lets_a_request_under_way_be_answered(tmp_path):
    (tmp_path / "my_rewards.py").write_text(WAITING)
    with started(tmp_path, "--reward_funcs", "my_rewards.py:waiting") as (process, url):
        finish = RemoteReward(url).start(**ROWS)
        while not (tmp_path / "called").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while is_open(url):  # it takes no more requests, and has heard
            time.sleep(0.01)
        (tmp_path / "may_answer").touch()
        assert finish() == [21.0, 0.0]
        assert process.wait(60) == -signal.SIGTERM


def test_sigterm_ends_it_while_a_reward_does_not_come_back(tmp_path):
    (tmp_path / "my_rewards.py").write_text(WAITING)
    with started(tmp_path, "--reward_funcs", "my_rewards.py:waiting") as (process, url):
        RemoteReward(url, retries=0).start(**ROWS)
        while not (tmp_path / "called").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


# ---- in process


@pytest.fixture
def main(monkeypatch):
    """The recipe's `main`, which does everything but serve."""
    main = load_main("serve_reward")
    monkeypatch.setitem(main.__globals__, "serve", lambda app, listener: listener.close())
    monkeypatch.delenv("REWARD_API_TOKEN", raising=False)
    return main


def test_it_says_what_a_client_needs(main, capsys, monkeypatch):
    main(["--reward_funcs", "Vader", "EndsWithSentence", "--port", "0"])
    said = capsys.readouterr().out
    assert "Serving Vader, EndsWithSentence." in said
    assert 'reward_funcs: [{"func": "RemoteReward", "args": {"url": "http://127.0.0.1:' in said
    assert "REWARD_API_TOKEN" not in said
    main(["--reward_funcs", "Vader", "--port", "0", "--host", "0.0.0.0"])
    said = capsys.readouterr().out
    assert f"http://{socket.gethostname()}:" in said
    assert "Whoever reaches this port can use it. Set REWARD_API_TOKEN" in said
    monkeypatch.setenv("REWARD_API_TOKEN", "s3cret")
    main(["--reward_funcs", "Vader", "--port", "0", "--host", "0.0.0.0"])
    said = capsys.readouterr().out
    assert "Clients need the token that REWARD_API_TOKEN holds here" in said
    assert "s3cret" not in said


def test_a_file_describes_a_server_and_flags_override_it(main, tmp_path, capsys):
    (tmp_path / "server.yaml").write_text(
        "reward_funcs: [{func: Vader, name: tone, weight: 2.0}]\nhost: 127.0.0.1\nport: 70000\nmax_rows: 8\n"
    )
    main(["--config", str(tmp_path / "server.yaml"), "--port", "0"])
    assert "Serving tone." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "8000"], "missing: --reward_funcs"),
        (["--reward_funcs", "Vader", "--port", "70000"], "port is 70000; give one from 0 to 65535"),
        (["--reward_funcs", "Vader", "--max_row", "3"], "Did you mean '--max_rows'?"),
    ],
)
def test_options_that_cannot_be_are_refused(main, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_rewards_that_cannot_be_served_are_refused(main, tmp_path):
    (tmp_path / "my_rewards.py").write_text(MY_REWARDS)
    with pytest.raises(ValueError, match="Reward 'PerToken' cannot be served: it gives one number for each token"):
        main(["--reward_funcs", f"{tmp_path}/my_rewards.py:PerToken", "--port", "0"])
    with pytest.raises(ValueError, match="There is no reward 'Vadr'"):
        main(["--reward_funcs", "Vadr", "--port", "0"])
    with pytest.raises(ValueError, match="max_rows of a reward server is 0"):
        main(["--reward_funcs", "Vader", "--port", "0", "--max_rows", "0"])
