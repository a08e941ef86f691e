"""Rollouts that a run keeps: which, with what in them, and what a critic is to learn of them."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.ppo.warm_critic.rollouts import FOLDER, keep_rollout, read_rollouts, split_by_prompt
from tests.ppo.helpers import trainer


def settings(save_rollouts=2, gamma=0.5):
    return SimpleNamespace(save_rollouts=save_rollouts, temperature=0.7, gamma=gamma)


def two_episodes(first=5):
    """Prompts of 2 and 1 tokens; completions of 3 and 2, of which the second counts in no loss."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    zeros = torch.zeros(2, 3)
    return Rollout(
        prompt_ids=torch.tensor([[first, 6], [0, 7]]),
        prompt_mask=torch.tensor([[1, 1], [0, 1]]),
        completion_ids=torch.tensor([[1, 2, 3], [4, 2, 0]]),
        mask=mask,
        logprobs=-torch.arange(6.0).view(2, 3),
        ref_logprobs=zeros,
        values=zeros + 0.25,
        finished=torch.tensor([True, False]),
        trunk=torch.zeros(2, 5, 4),
        loss_mask=mask * torch.tensor([[1], [0]]),
        rewards=torch.tensor([[1.0, 0.0, 4.0], [0.0, 8.0, 0.0]]),
    )


def names(folder):
    return sorted(int(file.stem[-6:]) for file in (folder / FOLDER).iterdir())


def test_an_episode_comes_back_without_padding_and_with_plain_returns(tmp_path):
    keep_rollout(tmp_path, 3, two_episodes(), settings())
    (stored,) = read_rollouts(tmp_path, "first", 8)
    assert (stored.number, stored.temperature) == (3, 0.7)
    one, other = stored.episodes
    assert one["prompt_ids"].tolist() == [5, 6]
    assert other["prompt_ids"].tolist() == [7]
    assert other["completion_ids"].tolist() == [4, 2]
    assert one["returns"].tolist() == [1 + 0.5 * 0 + 0.25 * 4, 0.5 * 4, 4]  # at gamma 1/2
    assert other["returns"].tolist() == [4, 8]
    assert one["loss_mask"].tolist() == [1, 1, 1]
    assert other["loss_mask"].tolist() == [0, 0]
    assert other["logprobs"].tolist() == [-3, -4]
    assert one["values"].tolist() == [0.25] * 3
    (undiscounted,) = read_rollouts(tmp_path / FOLDER, "last", 1, gamma=1.0)
    assert undiscounted.episodes[0]["returns"].tolist() == [5, 4, 4]


def test_the_first_and_the_last_are_kept_and_nothing_else_of_the_folder_is_touched(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "rollout-000009.safetensors.txt").write_text("mine")
    for number in range(7):
        keep_rollout(tmp_path, number, two_episodes(), settings())
    assert (tmp_path / FOLDER / "rollout-000009.safetensors.txt").read_text() == "mine"
    (tmp_path / FOLDER / "rollout-000009.safetensors.txt").unlink()
    assert names(tmp_path) == [0, 1, 5, 6]
    assert [rollout.number for rollout in read_rollouts(tmp_path, "first", 3)] == [0, 1, 5]
    assert [rollout.number for rollout in read_rollouts(tmp_path, "last", 2)] == [5, 6]
    keep_rollout(tmp_path, 5, two_episodes(first=9), settings())  # the run was resumed from before
    assert names(tmp_path) == [0, 1, 5]
    assert read_rollouts(tmp_path, "last", 1)[0].episodes[0]["prompt_ids"].tolist() == [9, 6]


def test_one_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    keep_rollout(tmp_path, 0, two_episodes(), settings())

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("rlhf_recipes.ppo.warm_critic.rollouts.save_file", full)
    with pytest.raises(OSError, match="No space"):
        keep_rollout(tmp_path, 0, two_episodes(first=9), settings())
    assert names(tmp_path) == [0]
    assert read_rollouts(tmp_path, "first", 1)[0].episodes[0]["prompt_ids"].tolist() == [5, 6]


def test_what_is_no_rollout_is_refused_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rollouts in .*--save_rollouts N"):
        read_rollouts(tmp_path, "first", 1)
    (tmp_path / "rollout-000000.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"rollout-000000.safetensors' is no rollout that a PPO run has kept: \w"):
        read_rollouts(tmp_path, "first", 1)


def test_no_prompt_is_on_both_sides():
    episodes = [{"prompt_ids": torch.tensor([n % 40, 1])} for n in range(80)]
    train, held_out = split_by_prompt(episodes, 0.25, seed=0)
    assert len(train) + len(held_out) == 80
    prompts = [{tuple(e["prompt_ids"].tolist()) for e in side} for side in (train, held_out)]
    assert prompts[0].isdisjoint(prompts[1])
    assert 2 <= len(prompts[1]) <= 20  # 10 expected; 4 standard deviations of 2.7
    assert split_by_prompt(episodes, 0.25, seed=1)[1] != held_out
    with pytest.raises(ValueError, match="1 stored episodes cannot be divided.*num_rollouts.*held_out"):
        split_by_prompt(episodes[:1], 0.25, seed=0)


def test_a_run_keeps_what_it_learned_from_and_a_run_that_keeps_none_is_the_same(tmp_path):
    run = trainer(tmp_path / "kept", save_rollouts=1, lam=1.0, kl_coef=0.3)
    run.train()
    assert names(tmp_path / "kept") == [0, 1]
    (stored,) = read_rollouts(tmp_path / "kept", "last", 1)
    rollout = run.rollout
    for row, episode in enumerate(stored.episodes):
        real = rollout.mask[row].bool()
        assert episode["completion_ids"].tolist() == rollout.completion_ids[row][real].tolist()
        assert episode["prompt_ids"].tolist() == rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist()
        torch.testing.assert_close(episode["returns"], rollout.returns[row][real])  # those of lambda 1
    plain = trainer(tmp_path / "plain", lam=1.0, kl_coef=0.3)
    plain.train()
    assert not (tmp_path / "plain" / FOLDER).exists()
    assert torch.equal(run.rollout.values, plain.rollout.values)
