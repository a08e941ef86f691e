"""The arithmetic of the figures, and that a figure fits into a page."""

import matplotlib
import numpy as np
import pytest

from rlhf_recipes import figures as plots


def test_running_mean() -> None:
    assert plots.running_mean([1, 2, 6, 3], window=3) == [1.5, 3.0, pytest.approx(11 / 3), 4.5]
    assert plots.running_mean([1, 5], window=1) == [1.0, 5.0]


def test_small_values_keep_their_tick_labels() -> None:
    # Coordinates lose their decimals; what is written on the axis must not.
    svg = plots.plot_curves("loss", "Loss", "loss", {"loss": [(16, -0.004), (32, 0.0031)]})
    assert ">0.002<" in svg
    assert ">−0.002<" in svg


def test_labels_are_escaped_and_ids_carry_the_figure_name() -> None:
    svg = plots.plot_gains("dots", 'a "b" <c>', [(1.0, 2.0), (-1.0, 0.5)], ("$x$", "<y>"))
    assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in svg
    assert "change of the score of $x$" in svg
    assert "&lt;y&gt;" in svg
    assert svg.count('id="') == svg.count('id="dots-')


def test_settings_of_matplotlib_are_left_alone_and_do_not_matter() -> None:
    first = plots.plot_score_histogram("h", "scores", [0.0, 1.0], [1.0, 2.0])
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert plots.plot_score_histogram("h", "scores", [0.0, 1.0], [1.0, 2.0]) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_one_value_and_equal_values_can_be_drawn() -> None:
    assert plots.plot_score_histogram("h", "scores", [1.0], [1.0]).startswith("<svg")
    assert plots.plot_curves("c", "one", "unit", {"a": [(16, 0.5)]}).startswith("<svg")
    assert plots.plot_calibration("k", "one bin", [(1.0, 1.0, 0.0)]).startswith("<svg")


def test_bins_of_few_values_and_of_many() -> None:
    edges, exact = plots.bins(np.array([0.0, 1.0, 1.0]), 10)
    assert (edges.tolist(), exact) == ([-0.5, 0.5, 1.5], [0.0, 1.0])
    assert plots.bins(np.array([2.0, 2.0]), 10)[1] == [2.0]
    edges, exact = plots.bins(np.arange(0.0, 10.0, 0.5), 10)
    assert (edges.tolist(), exact) == ([float(i) for i in range(11)], None)
