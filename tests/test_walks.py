"""How many files a rating row, a prompt and a reward pass, counted on small runs; a failure names them.

The bounds are what was reached. What is wished for are 12, 6 and 6. Whole runs of recipes are watched, which takes
seconds: a walk that is put together by hand would be another one.
"""

import pytest
import torch

from tests.recipes.tiny_runs import flags, load_main, make_place, write_rows
from tests.tiny import tiny_tokenizer
from tests.walks import Number, Text, watched

MARKED = "film good bad film dull good"
REWARD = 0.7310585
MY_REWARD = f"""
def marked(prompts, **kwargs):
    return [{REWARD} if prompt == {MARKED!r} else 0.25 for prompt in prompts]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(make_place(tmp_path))
    yield tmp_path
    torch.set_num_threads(threads)


def mark(kind):
    return Text(MARKED, tiny_tokenizer(kind)(MARKED, add_special_tokens=False).input_ids)


def options(place, **more):
    return flags({"output_dir": place / "out", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", **more})


def test_a_rating_row_from_its_file_to_the_trained_model(place):
    rows = [{"completion": f"The film is {'good ' * (row % 5)}{row}", "score": row % 5 - 2.0} for row in range(12)]
    write_rows(place / "ratings/train.jsonl", [{"completion": MARKED, "score": 1.0}, *rows])
    write_rows(
        place / "ratings/test.jsonl", [{"completion": f"A dull script {n}", "score": n - 2.0} for n in range(4)]
    )
    run = {"dataset_name": place / "ratings", "model_name_or_path": place / "judge", "validation_split": "test"}
    with watched({"save_reward_model": mark("bert")}) as (row,):
        load_main("reward")(options(place, **run, max_steps=1, per_device_train_batch_size=16, loss="mse"))
    assert {"data/loading.py", "reward_modeling/splits.py", "reward_modeling/trainer.py"} <= row.files.keys()
    assert len(row.stations) <= 13, row


def test_a_prompt_to_the_policy_and_a_reward_to_the_loss(place):
    write_rows(
        place / "prompts/train.jsonl", [{"prompt": MARKED}, *({"prompt": f"The film {n} is"} for n in range(7))]
    )
    (place / "my_rewards.py").write_text(MY_REWARD)
    run = {"dataset_name": place / "prompts", "model_name_or_path": place / "policy"}
    run |= {"reward_funcs": "my_rewards.py:marked", "total_episodes": 8, "per_device_train_batch_size": 8}
    with watched({"generate": mark("llama"), "compute_loss": Number(REWARD)}) as (prompt, reward):
        load_main("ppo")(options(place, **run, max_completion_length=4, kl_coef=0.0, whiten_advantages=False))
    assert {"data/prompts.py", "ppo/trainer.py"} <= prompt.files.keys()
    assert {"rewards/base.py", "ppo/scoring.py", "ppo/credit.py"} <= reward.files.keys()
    assert len(prompt.stations) <= 6, prompt
    assert len(reward.stations) <= 7, reward
