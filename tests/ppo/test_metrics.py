"""The glossary, and the meter that refuses what is not in it."""

from pathlib import Path

import pytest

from rlhf_recipes.ppo.metrics import GLOSSARY, Meter, as_markdown


def test_a_meter_gives_weighted_means_and_is_empty_afterwards():
    meter = Meter()
    meter.add({"loss/policy_avg": 1.0}, weight=3)
    meter.add({"loss/policy_avg": 5.0, "policy/ratio": 2.0}, weight=1)
    assert meter.read() == {"loss/policy_avg": 2.0, "policy/ratio": 2.0}  # (3 * 1 + 1 * 5) / 4
    assert meter.read() == {}


def test_a_name_outside_the_glossary_is_refused():
    with pytest.raises(KeyError, match="objective/score.*define it there"):
        Meter().add({"objective/score": 1.0})


def test_rewards_and_times_may_have_any_name():
    meter = Meter()
    meter.add({"reward/politeness": 0.5, "time/sample": 1.5})
    assert meter.read() == {"reward/politeness": 0.5, "time/sample": 1.5}


def test_a_mean_without_weight_is_left_out_instead_of_dividing_by_zero():
    meter = Meter()
    meter.add({"loss/policy_avg": 1.0}, weight=0)
    assert meter.read() == {}


def test_every_name_has_a_definition():
    assert all(text.endswith(".") and len(text) > 15 for text in GLOSSARY.values())


def test_meters_of_several_processes_add_up_also_where_a_name_is_missing_in_one():
    one, two = Meter(), Meter()
    one.add({"loss/policy_avg": 1.0, "reward/rare": 7.0}, weight=3)
    two.add({"loss/policy_avg": 5.0}, weight=1)
    one.merge(two.state())
    assert one.read() == {"loss/policy_avg": 2.0, "reward/rare": 7.0}


def test_the_page_in_the_docs_is_made_from_the_glossary():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    to_do = "run: python -m rlhf_recipes.ppo.metrics > docs/metrics.md"
    assert page.read_text(encoding="utf-8") == as_markdown(), to_do
    assert all(f"| `{name}` |" in as_markdown() for name in GLOSSARY)
