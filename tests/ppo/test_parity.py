"""This project beside TRL 1.12's PPOTrainer: equal where TRL is right, and different where the docs say so.

TRL runs in a process of its own (parity/run_trl.py) on tiny models with recorded completions. Here the same models are
trained on the same completions, in the same order of prompts and mini-batches, and every number is compared: see
parity/cases.py for the cases. Both are in float32; TRL divides logits by `temperature + 1e-7`, which is most of what
is left between them.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.ppo.parity import cases, ours, overlay
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

EOS = 2
ROLLOUT = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
# TRL's name and ours, of every metric that both define alike.
METRICS = {
    "objective/kl": "objective/kl",
    "objective/entropy": "objective/entropy",
    "objective/non_score_reward": "objective/non_score_reward",
    "objective/rlhf_reward": "objective/rlhf_reward",
    "objective/scores": "objective/scores",
    "policy/approxkl_avg": "policy/approxkl_avg",
    "policy/clipfrac_avg": "policy/clipfrac_avg",
    "policy/entropy_avg": "policy/entropy_avg",
    "loss/policy_avg": "loss/policy_avg",
    "loss/value_avg": "loss/value_avg",
    "val/clipfrac_avg": "value/clipfrac_avg",
    "val/ratio": "policy/ratio",
    "val/num_eos_tokens": "rollout/num_eos_tokens",
    "lr": "learning_rate",
    "episode": "episode",
    "epoch": "epoch",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Policy, reference, reward and value model on disk, each with other weights."""
    folder = tmp_path_factory.mktemp("parity")
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token_id == EOS
    size = {"hidden_size": 16, "initializer_range": 0.2}
    save_tiny(folder / "policy", tiny_causal_lm(tokenizer, seed=0, **size), tokenizer)
    save_tiny(folder / "reference", tiny_causal_lm(tokenizer, seed=1, **size), tokenizer)
    save_tiny(folder / "reward", tiny_classifier(tokenizer, kind="llama", seed=2, **size), tokenizer)
    save_tiny(folder / "value", tiny_classifier(tokenizer, kind="llama", seed=3, **size), tokenizer)
    return folder


@pytest.fixture(scope="module")
def of_trl(models):
    """What TRL did in each case."""
    script, result = Path(ours.__file__).with_name("run_trl.py"), models / "trl.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, overlay.find(), models, result]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result, weights_only=False)  # written by the line above


@pytest.fixture(scope="module")
def of_ours(models, of_trl):
    """What this project does in a case, each of which is run once."""
    done = {}

    def result(name):
        if name not in done:
            done[name] = ours.run(models, cases.CASES[name], of_trl[name])
        return done[name]

    return result


def equal(one, other, **tolerances):
    options = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False} | tolerances
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), **options)


def on_tokens(tensor, mask):
    return torch.where(mask.bool(), tensor, 0.0)


def mean(tensor, mask):
    return (tensor * mask).sum() / mask.sum()


def logs_of(run):
    return [entry for entry in run["logs"] if "objective/scores" in entry]


def distance(run, role="policy"):
    """How far the weights went from where the policy began."""
    squares = [((run[role][name] - tensor) ** 2).sum() for name, tensor in run["before"].items()]
    return float(sum(squares)) ** 0.5


# --- Equal, where TRL is right ------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.EQUAL | cases.ENDED)
def test_a_rollout_has_the_same_numbers(name, of_trl, of_ours):
    trl, mine = of_trl[name]["rollouts"], of_ours(name)["rollouts"]
    assert len(trl) == len(mine) == cases.CASES[name].rollouts
    for theirs, own in zip(trl, mine, strict=True):
        equal(theirs["scores"], own["scores"])
        assert torch.equal(~theirs["padding_mask"], own["mask"].bool())
        for key in ROLLOUT:
            equal(on_tokens(theirs[key], own["mask"]), on_tokens(own[key], own["mask"]))


@pytest.mark.parametrize("name", cases.EQUAL | cases.ENDED)
def test_every_update_has_the_same_losses_and_ratios(name, of_trl, of_ours):
    trl, mine = of_trl[name], of_ours(name)
    assert trl["events"] == mine["events"]
    assert trl["events"].count("step") == 4 * cases.CASES[name].rollouts
    for theirs, own in zip(trl["steps"], mine["steps"], strict=True):
        equal(theirs["pg_loss"], mean(own["loss/policy_avg"], own["mask"]))
        equal(theirs["vf_loss"], mean(own["loss/value_avg"], own["mask"]))
        equal(theirs["loss"], own["whole"])
        equal(on_tokens(theirs["ratio"], own["mask"]), on_tokens(own["policy/ratio"], own["mask"]))


@pytest.mark.parametrize("name", cases.EQUAL | cases.ENDED)
def test_the_run_ends_with_the_same_weights(name, of_trl, of_ours):
    trl, mine = of_trl[name], of_ours(name)
    for role in ("before", "policy", "critic"):
        assert trl[role].keys() == mine[role].keys()
        for key, tensor in trl[role].items():
            equal(tensor, mine[role][key], rtol=0)
    assert distance(trl) > 0.05  # there was something to get wrong


@pytest.mark.parametrize("name", cases.EQUAL)
def test_the_log_has_the_same_figures(name, of_trl, of_ours):
    trl, mine = of_trl[name], logs_of(of_ours(name))
    assert len(trl["logs"]) == len(mine)
    for theirs, own in zip(trl["logs"], mine, strict=True):
        for key, own_key in METRICS.items():
            equal(theirs[key], own[own_key])
        assert set(theirs) - set(METRICS) == {"eps", "val/ratio_var", "step"}


def test_the_cases_reach_what_they_are_for(of_trl):
    """Clipping bites, the policy moves, and a KL is there: else equal numbers would say little."""
    for name in cases.EQUAL:
        last = of_trl[name]["logs"][-1]
        assert last["policy/clipfrac_avg"] > 0.05
        assert last["val/clipfrac_avg"] > 0.05
        assert abs(last["objective/kl"]) > 1e-3


# --- The score: on the end, and not one place behind it -----------------------------------------


def test_trl_pays_the_score_one_place_behind_the_end(of_trl, of_ours):
    (theirs,), (own,) = of_trl["score place"]["rollouts"], of_ours("score place")["rollouts"]
    for key in ("logprobs", "ref_logprobs", "values", "scores"):
        mask = own["mask"] if theirs[key].dim() == 2 else torch.ones(16)
        equal(on_tokens(theirs[key], mask), on_tokens(own[key], mask))
    moved, last = theirs["rewards"].clone(), own["mask"].sum(1) - 1
    ended = last < cases.LENGTH - 1
    assert 8 < int(ended.sum()) < 16
    for row in torch.nonzero(ended).flatten().tolist():
        moved[row, last[row] + 1] -= theirs["scores"][row]
        moved[row, last[row]] += theirs["scores"][row]
    equal(moved, own["rewards"])
    # And so the value loss counted a token that is not there, one for each completion that ended.
    counted = (~theirs["padding_mask_p1"]).sum() - (~theirs["padding_mask"]).sum()
    assert counted == ended.sum()
    assert (theirs["returns"] - own["returns"]).abs().max() > 0.1


def test_with_the_score_moved_by_hand_trl_and_ours_have_the_same_advantages(of_trl, of_ours):
    """From TRL's own log-probabilities, values and scores, row by row and with nothing but Python's numbers."""
    (theirs,), (own,) = of_trl["score place"]["rollouts"], of_ours("score place")["rollouts"]
    options = cases.CASES["score place"].config()
    gamma, lam, kl_coef = (options[name] for name in ("gamma", "lam", "kl_coef"))
    advantages, targets = [], []
    for row, length in enumerate(own["mask"].sum(1).tolist()):
        kl = [float(theirs["logprobs"][row, t] - theirs["ref_logprobs"][row, t]) for t in range(length)]
        rewards = [-kl_coef * k for k in kl]
        rewards[-1] += float(theirs["scores"][row])
        values = [*theirs["values"][row, :length].tolist(), 0.0]
        advantage, of_row = 0.0, []
        for t in reversed(range(length)):
            advantage = rewards[t] + gamma * values[t + 1] - values[t] + gamma * lam * advantage
            of_row.insert(0, advantage)
        advantages += of_row
        targets += [a + v for a, v in zip(of_row, values, strict=False)]
    centre = sum(advantages) / len(advantages)
    variance = sum((a - centre) ** 2 for a in advantages) / (len(advantages) - 1)
    real = own["mask"].bool()
    equal(own["returns"][real], targets)
    equal(own["advantages"][real], [(a - centre) / (variance + 1e-8) ** 0.5 for a in advantages])


# --- Pad and EOS --------------------------------------------------------------------------------


def score_of(models, prompt, completion):
    """What the reward model says of a text, by its own forward pass."""
    model = AutoModelForSequenceClassification.from_pretrained(models / "reward", num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *completion]])).logits.item()


def test_with_pad_equal_to_eos_trl_does_not_see_the_end(models, of_trl, of_ours):
    case = cases.CASES["pad is eos"]
    (theirs,), (own,) = of_trl["pad is eos"]["rollouts"], of_ours("pad is eos")["rollouts"]
    ends = own["completion_ids"] == EOS
    assert 8 < int(ends.sum()) < 16
    # TRL: the end is padding. It has no log-probability (1 stands for none), and no loss ever reads it.
    assert bool(theirs["padding_mask"][ends].all())
    assert bool((theirs["logprobs"][ends] == 1.0).all())
    # Ours: it is a token like any other, and another token pads.
    assert bool((own["mask"][ends] == 1).all())
    assert bool((own["logprobs"][ends] < 0).all())
    row = int(torch.nonzero(ends)[0, 0])
    completions = cases.completions(case, EOS)
    prompt = tuple(own["prompt_ids"][row][own["prompt_mask"][row].bool()].tolist())
    completion = completions[prompt][: int(own["mask"][row].sum())]
    equal(theirs["scores"][row], score_of(models, prompt, completion[:-1]))
    equal(own["scores"][row], score_of(models, prompt, completion))
    # The same as with a pad token of its own: nothing depends on which token pads.
    equal(own["scores"], of_ours("score place")["rollouts"][0]["scores"])


def test_a_tokenizer_that_pads_on_the_right_spoils_trls_first_token_only(of_trl, of_ours):
    (theirs,), (own,) = of_trl["pads right"]["rollouts"], of_ours("pads right")["rollouts"]
    shorter = own["prompt_mask"].sum(1) < own["prompt_ids"].shape[1]
    difference = (theirs["ref_logprobs"] - own["ref_logprobs"]).abs()
    assert bool((difference[shorter, 0] > 1e-3).all())  # read behind the padding, not behind the prompt
    equal(theirs["ref_logprobs"][:, 1:], own["ref_logprobs"][:, 1:])
    equal(theirs["ref_logprobs"][~shorter], own["ref_logprobs"][~shorter])


# --- What ends a completion, and the penalty for no end -----------------------------------------


def test_trls_penalty_does_not_know_a_stop_token_of_ones_own(of_trl, of_ours):
    (theirs,), (own,) = of_trl["penalty, stop token"]["rollouts"], of_ours("penalty, stop token")["rollouts"]
    stopped = (own["completion_ids"] == cases.STOP).any(1)
    assert 8 < int(stopped.sum()) < 16
    assert torch.equal(own["finished"], stopped)
    equal(own["scores"], theirs["scores"] + 1.5 * stopped)  # TRL subtracts 1.5 from every score


def test_without_a_stop_token_trl_goes_on_after_eos_and_ours_ends_there(of_trl, of_ours):
    (theirs,), (own,) = of_trl["default stop"]["rollouts"], of_ours("default stop")["rollouts"]
    assert not theirs["padding_mask"].any()  # all six tokens are trained, whatever follows EOS
    lengths = [row.index(EOS) + 1 if EOS in row else cases.LENGTH for row in theirs["responses"].tolist()]
    assert own["mask"].sum(1).tolist() == lengths
    assert min(lengths) == 2


def test_stop_token_none_is_trls_default_but_for_the_penalty(of_trl, of_ours):
    (theirs,), (own,) = of_trl["no stop"]["rollouts"], of_ours("no stop")["rollouts"]
    for key in ("logprobs", "ref_logprobs", "values"):
        equal(theirs[key], own[key])
    # TRL asks whether EOS is anywhere in it. Here nothing ended by itself, so that all are short of an end.
    assert not own["finished"].any()
    has_eos = (theirs["responses"] == EOS).any(1)
    equal(own["scores"], theirs["scores"] - 1.5 * has_eos)


# --- Means: over tokens, and not over micro-batches or padding ----------------------------------


def test_trls_loss_depends_on_the_micro_batch_and_ours_does_not(models, of_trl, of_ours):
    name = "four micro-batches"
    theirs, mine = of_trl[name], of_ours(name)
    first, tokens = theirs["steps"][:4], [int(step["mask"].sum()) for step in mine["steps"][:4]]
    assert len(set(tokens)) > 1
    losses = [float(step["vf_loss"]) for step in first]
    equal(theirs["logs"][0]["loss/value_avg"], sum(losses) / 4)
    by_token = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
    equal(logs_of(mine)[0]["loss/value_avg"], by_token)
    assert abs(by_token - sum(losses) / 4) > 1e-2
    # The same rollouts with 16 episodes at a time.
    whole = dataclasses.replace(
        cases.CASES[name], ours={"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    )
    in_one = ours.run(models, whole, theirs)
    assert len(in_one["steps"]) == 2
    for key, tensor in mine["policy"].items():
        equal(tensor, in_one["policy"][key], rtol=0, atol=1e-6)


def test_trls_statistics_of_the_update_count_padding(of_trl, of_ours):
    """Ratio 1 and log-ratio 0 on padding draw TRL's figures towards these."""
    theirs, mine = of_trl["ended, sgd"], of_ours("ended, sgd")
    steps = mine["steps"][:4]
    squares = [torch.where(s["mask"].bool(), s["policy/approxkl_avg"], 0.0) for s in steps]
    ratios = [torch.where(s["mask"].bool(), s["policy/ratio"], 1.0) for s in steps]
    tokens = sum(int(s["mask"].sum()) for s in steps)
    assert tokens < 0.8 * sum(s["mask"].numel() for s in steps)
    trl_log, log = theirs["logs"][0], logs_of(mine)[0]
    equal(trl_log["policy/approxkl_avg"], sum(x.mean() for x in squares) / 4)
    equal(log["policy/approxkl_avg"], sum(x.sum() for x in squares) / tokens)
    equal(trl_log["val/ratio"], sum(x.mean() for x in ratios) / 4)
    padding = sum(s["mask"].numel() for s in steps) - tokens
    equal(log["policy/ratio"], (sum(x.sum() for x in ratios) - padding) / tokens)
    assert log["policy/approxkl_avg"] > 1.2 * trl_log["policy/approxkl_avg"]


def test_trls_ratio_var_is_over_updates_and_ours_over_tokens(of_trl, of_ours):
    theirs, mine = of_trl["sgd, k1"], of_ours("sgd, k1")
    ratios = [step["policy/ratio"] for step in mine["steps"][:4]]
    equal(theirs["logs"][0]["val/ratio_var"], torch.stack([x.mean() for x in ratios]).var(), rtol=1e-4)
    equal(logs_of(mine)[0]["policy/ratio_var"], torch.cat(ratios).var(correction=0), rtol=1e-4)


def of_policy(folder, rollout):
    """Log-probabilities and entropies of a model on TRL's own queries and responses."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.cat([rollout["queries"], rollout["responses"]], dim=1)
    seen = (ids != rollout["pad"]).long()
    with torch.no_grad():
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids * seen, attention_mask=seen, position_ids=positions).logits
    logprobs = (logits[:, rollout["queries"].shape[1] - 1 : -1] / 0.7).log_softmax(-1)
    drawn = logprobs.gather(-1, rollout["responses"].unsqueeze(-1)).squeeze(-1)
    return drawn, -(logprobs.exp() * logprobs).sum(-1)


def test_trls_entropy_counts_padding(models, of_trl, of_ours):
    theirs, mine = of_trl["one micro-batch"], of_ours("one micro-batch")
    rollout = theirs["rollouts"][0]
    _, entropies = of_policy(models / "policy", rollout)
    real = (~rollout["padding_mask"]).float()
    equal(logs_of(mine)[0]["policy/entropy_avg"], mean(entropies, real))
    trl_figure = theirs["logs"][0]["policy/entropy_avg"]
    assert abs(trl_figure - float(mean(entropies, real))) > 1e-4
    padding = (trl_figure * real.numel() - float((entropies * real).sum())) / float((1 - real).sum())
    assert 0 < padding < float(torch.tensor(400.0).log())  # of the same size as a real one: it is an entropy


# --- Steps --------------------------------------------------------------------------------------


def steps_of_rollouts(run):
    """Optimizer steps of each rollout."""
    words = " ".join(run["events"]).split("rollout")[1:]
    return [part.split().count("step") for part in words]


def test_with_accumulation_trls_number_of_steps_does_not_follow_its_mini_batches(of_trl, of_ours):
    """2 epochs of 16 episodes, 4 at a time, accumulation 4. The last rollout of a pass over the data is another case.

    There accelerate ends the accumulation at every micro-batch, because the data loader is at its end.
    """
    assert steps_of_rollouts(of_trl["steps, 1 mini-batch"]) == [2, 8]
    assert steps_of_rollouts(of_trl["steps, 4 mini-batches"]) == [2, 8]
    assert steps_of_rollouts(of_ours("steps, 1 mini-batch")) == [2, 2]
    assert steps_of_rollouts(of_ours("steps, 4 mini-batches")) == [8, 8]
    assert (of_trl["steps, 4 mini-batches"]["global_step"], of_ours("steps, 4 mini-batches")["global_step"]) == (2, 16)


def test_with_accumulation_and_mini_batches_trl_averages_zeros_into_its_figures(of_trl, of_ours):
    """Of 2 x 4 x 4 places for figures, 2 x 4 are filled: four mini-batches of one micro-batch each."""
    theirs, mine = of_trl["steps, 4 mini-batches"], of_ours("steps, 4 mini-batches")
    sums = sum(float(step["ratio"].mean()) for step in theirs["steps"][:8])
    equal(theirs["logs"][0]["val/ratio"], sums / 32)
    assert theirs["logs"][0]["val/ratio"] < 0.3
    assert logs_of(mine)[0]["policy/ratio"] > 0.9


def test_trl_ignores_max_grad_norm(of_trl, of_ours):
    plain, limited = of_trl["sgd, k1"], of_trl["clipped gradient"]
    assert cases.CASES["clipped gradient"].config()["max_grad_norm"] == 1e-3
    assert all(torch.equal(limited["policy"][name], tensor) for name, tensor in plain["policy"].items())
    # 8 steps of at most learning rate 0.02 times norm 0.001.
    assert distance(of_ours("clipped gradient")) < 8 * 0.02 * 0.001 * 1.001
    assert distance(limited) > 0.05


def test_trls_schedule_counts_rollouts_and_ours_optimizer_steps(of_trl, of_ours):
    theirs, mine = of_trl["linear schedule"], of_ours("linear schedule")
    assert (theirs["global_step"], mine["global_step"]) == (2, 8)
    assert [log["lr"] for log in theirs["logs"]] == pytest.approx([0.02, 0.01])
    # Of the last step of each rollout: 3/8 and 7/8 of the way down.
    assert [log["learning_rate"] for log in logs_of(mine)] == pytest.approx([0.0125, 0.0025])


def test_trl_draws_the_order_of_mini_batches_from_a_generator_that_it_never_seeds(of_trl):
    """So two runs of TRL with one seed differ. Here the order is a function of `seed` and the rollout."""
    assert not of_trl["sgd, k1"]["numpy_was_seeded"]


def test_trl_ignores_logging_steps_and_eval_strategy(of_trl, of_ours):
    theirs, mine = of_trl["logging and evaluation"], of_ours("logging and evaluation")
    assert [log["episode"] for log in theirs["logs"]] == [16, 32, 48, 64]
    assert [log["episode"] for log in logs_of(mine)] == [32, 64]
    assert not any(name.startswith("eval_") for log in theirs["logs"] for name in log)
    assert sum("eval_objective/scores" in log for log in mine["logs"]) == 4


# --- The reference ------------------------------------------------------------------------------


def test_trls_reference_of_trained_adapters_is_the_model_below_them(models, of_trl, of_ours):
    (theirs,), (own,) = of_trl["trained adapters"]["rollouts"], of_ours("trained adapters")["rollouts"]
    equal(theirs["logprobs"], own["logprobs"])
    equal(theirs["ref_logprobs"], of_policy(models / "policy", theirs)[0])
    assert (theirs["ref_logprobs"] - theirs["logprobs"]).abs().mean() > 0.05
    equal(own["ref_logprobs"], own["logprobs"])  # the policy as the run begins, adapters included
    assert logs_of(of_ours("trained adapters"))[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
