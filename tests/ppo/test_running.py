"""The KL controller by hand, and running moments against numpy over everything seen so far."""

import json

import numpy as np
import pytest
import torch

from rlhf_recipes.ppo.running import KLController, RunningMoments

# ---- the KL coefficient


def test_a_fixed_coefficient_stays():
    controller = KLController(0.05)
    controller.update(kl=1000.0, episodes=64)
    assert controller.value == 0.05


@pytest.mark.parametrize(
    ("kl", "value"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * 1.01),  # 10% above: error 0.1, times 1000 of 10,000 episodes
        (5.4, 0.1 * 0.99),
        (60.0, 0.1 * 1.02),  # far above: the error is clipped to 0.2
        (0.0, 0.1 * 0.98),
        (-3.0, 0.1 * 0.98),  # an estimate may be negative
    ],
)
def test_an_adaptive_coefficient_follows_the_clipped_relative_error(kl, value):
    controller = KLController(0.1, target=6.0, horizon=10000)
    controller.update(kl, episodes=1000)
    assert controller.value == pytest.approx(value, rel=1e-12)


def test_updates_multiply():
    controller = KLController(1.0, target=1.0, horizon=100)
    for kl in (2.0, 2.0, 0.5):
        controller.update(kl, episodes=50)
    assert controller.value == pytest.approx(1.1 * 1.1 * 0.9, rel=1e-12)


@pytest.mark.parametrize(("settings", "name"), [({"target": 0.0}, "target"), ({"horizon": -1}, "horizon")])
def test_what_is_not_positive_is_refused(settings, name):
    with pytest.raises(ValueError, match=f"The {name} of the KL controller is .* greater than 0"):
        KLController(0.1, **settings)


def test_a_controller_goes_on_from_its_state():
    whole, first = KLController(0.1, target=6.0), KLController(0.1, target=6.0)
    for controller in (whole, first):
        controller.update(20.0, 500)
    second = KLController(0.1, target=6.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for controller in (whole, second):
        controller.update(3.0, 500)
    assert second.value == whole.value == pytest.approx(0.1 * 1.01 * 0.99, rel=1e-12)


def test_a_fixed_coefficient_is_what_the_arguments_say_even_after_loading():
    controller = KLController(0.2)
    controller.load_state_dict(KLController(0.1).state_dict())
    assert controller.value == 0.2


# ---- running moments


def test_moments_by_hand():
    moments = RunningMoments()
    assert (moments.count, moments.mean, moments.std) == (0, 0.0, 1.0)
    moments.update([4.0])
    assert (moments.count, moments.mean, moments.std) == (1, 4.0, 1.0)
    moments.update([6.0, 8.0])  # 4, 6, 8: mean 6, variance (4 + 0 + 4) / 2
    assert (moments.count, moments.mean, moments.std) == (3, 6.0, 2.0)


@pytest.mark.parametrize("sizes", [[7], [1, 1, 5], [3, 0, 64, 1, 2], [1] * 9])
@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (-3.0, 0.01), (1e6, 1.0)])
def test_moments_are_those_of_all_batches_together(sizes, center, scale):
    rng = np.random.default_rng(0)
    batches = [rng.normal(center, scale, size) for size in sizes]
    moments, seen = RunningMoments(), np.concatenate(batches)
    for number, batch in enumerate(batches):
        moments.update(torch.tensor(batch) if number % 2 else batch.tolist())
    assert moments.count == len(seen)
    assert moments.mean == pytest.approx(seen.mean(), rel=1e-12, abs=1e-12)
    assert moments.std == pytest.approx(seen.std(ddof=1), rel=1e-7)


def test_a_tensor_of_any_shape_and_precision_is_a_batch():
    moments = RunningMoments()
    moments.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16, requires_grad=True))
    assert (moments.count, moments.mean) == (4, 3.0)
    assert moments.std == pytest.approx(np.std([1, 2, 3, 6], ddof=1), rel=1e-12)


@pytest.mark.parametrize("score", [0.0, 0.1, -7.3])
def test_equal_scores_have_a_deviation_of_1_to_divide_by(score):
    moments = RunningMoments()
    for size in (3, 1, 7):
        moments.update([score] * size)
    assert moments.std == 1.0
    torch.testing.assert_close(moments.normalized(torch.tensor([score]), use_norm=True), torch.zeros(1))


def test_normalized_scores():
    moments = RunningMoments()
    moments.update([4.0, 6.0, 8.0])  # mean 6, deviation 2
    scores = torch.tensor([[6.0, 9.0], [0.0, 4.0]])
    assert moments.normalized(scores, use_norm=True).tolist() == [[0.0, 1.5], [-3.0, -1.0]]
    assert moments.normalized(scores, use_norm=False).tolist() == [[3.0, 4.5], [0.0, 2.0]]
    assert moments.normalized([8, 4], use_norm=True).tolist() == [1.0, -1.0]
    assert moments.normalized(scores.half(), use_norm=True).dtype == torch.float16
    assert moments.count == 3  # they were not taken in


def test_moments_go_on_from_their_state():
    rng = np.random.default_rng(1)
    batches = [rng.normal(5, 2, 11) for _ in range(4)]
    whole, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    for batch in batches:
        whole.update(batch)
    for batch in batches[:2]:
        first.update(batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[2:]:
        second.update(batch)
    assert (second.count, second.mean, second.std) == (whole.count, whole.mean, whole.std)
