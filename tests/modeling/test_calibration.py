import math

import numpy as np
import pytest

from rlhf_recipes.modeling.calibration import LinearCalibration, LogisticCalibration, OrdinalCalibration


def test_the_curve_at_points_known_by_hand():
    curve = LogisticCalibration(scale=2.0, offset=0.0, low=-4.0, high=4.0)
    # sigmoid(log 3) = 3/4, which is 2 on a scale from -4 to 4.
    assert curve([0.0, math.log(3) / 2, -math.log(3) / 2]) == pytest.approx([0.0, 2.0, -2.0])


def test_it_stays_on_the_scale_and_never_turns():
    curve = LogisticCalibration(scale=3.0, offset=1.0, low=1.0, high=5.0)
    values = curve(np.array([-1e6, -5.0, -1.0, 0.0, 1.0, 5.0, 1e6]))
    assert values[0] == 1.0
    assert values[-1] == 5.0
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values[1:5]) > 0).all()


@pytest.mark.parametrize(("scale", "offset"), [(0.7, -0.3), (5.0, 2.0), (0.01, 0.5)])
def test_fit_recovers_a_curve_from_its_own_points(scale, offset):
    logits = np.linspace(-3.0, 4.0, 50)
    ratings = -4.0 + 8.0 / (1.0 + np.exp(-(scale * logits + offset)))
    curve = LogisticCalibration.fit(logits, ratings)
    assert (curve.scale, curve.offset) == pytest.approx((scale, offset), rel=1e-6)
    assert (curve.low, curve.high) == (-4.0, 4.0)


def test_fit_finds_the_least_squares_among_noise():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=4000) * 10 + 100  # far from 0 and wide: the fit must not depend on the unit
    clean = -4.0 + 8.0 / (1.0 + np.exp(-(0.15 * logits - 15.5)))
    curve = LogisticCalibration.fit(logits, np.clip(clean + generator.normal(size=4000) * 0.5, -4, 4))
    assert curve.scale == pytest.approx(0.15, rel=0.05)
    assert curve.offset == pytest.approx(-15.5, rel=0.05)


def test_fit_takes_ratings_at_the_ends_of_the_scale():
    curve = LogisticCalibration.fit([-2.0, -1.0, 1.0, 2.0], [1, 1, 5, 5], low=1, high=5)
    assert curve([-2.0, 2.0]) == pytest.approx([1.0, 5.0], abs=0.01)


@pytest.mark.parametrize(
    ("logits", "ratings", "words"),
    [
        ([0.0, 1.0], [1.0], r"shape \(2,\) and ratings \(1,\)"),
        ([0.0, 0.0], [1.0, 2.0], "2 logits hold fewer than two different"),
        ([], [], "0 logits hold fewer than two"),
        ([0.0, float("nan")], [1.0, 2.0], "NaN or infinite"),
        ([0.0, 1.0], [1.0, 6.0], "from 1 to 6, outside of the scale from -4 to 4"),
        ([0.0, 1.0], [2.0, 1.0], "do not rise with the logits"),
    ],
)
def test_fit_refuses_what_no_rising_curve_fits(logits, ratings, words):
    with pytest.raises(ValueError, match=words):
        LogisticCalibration.fit(logits, ratings)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"scale": -1.0}, {"low": 4.0}, {"offset": float("nan")}])
def test_a_curve_that_falls_or_has_no_scale_is_refused(settings):
    with pytest.raises(ValueError, match="is no calibration"):
        LogisticCalibration(**{"scale": 1.0, "offset": 0.0, **settings})


def test_a_line_is_undone():
    calibration = LinearCalibration(scale=2.0, offset=3.0)
    assert calibration([0.0, -1.0]).tolist() == [3.0, 1.0]
    with pytest.raises(ValueError, match="scale above 0"):
        LinearCalibration(scale=-1.0, offset=0.0)


def test_the_expected_level_under_proportional_odds():
    # At a score of 0 the thresholds log(1/3) and log(3) give P(y <= k) = 1/4 and 3/4: levels 1/4, 1/2, 1/4.
    calibration = OrdinalCalibration((math.log(1 / 3), math.log(3.0)), (0.0, 1.0, 10.0))
    assert calibration(0.0) == pytest.approx(0.25 * 0 + 0.5 * 1 + 0.25 * 10)
    assert calibration([[-100.0], [100.0]]).tolist() == [[pytest.approx(0.0)], [pytest.approx(10.0)]]


@pytest.mark.parametrize(
    ("thresholds", "levels"),
    [((), (1.0,)), ((1.0,), (1.0, 2.0, 3.0)), ((2.0, 1.0), (1.0, 2.0, 3.0)), ((0.0,), (2.0, 1.0))],
)
def test_thresholds_and_levels_must_rise(thresholds, levels):
    with pytest.raises(ValueError, match="K levels and K - 1 thresholds, both rising"):
        OrdinalCalibration(thresholds, levels)
