"""Reading a run: what is accepted, and which file, line and key an error names."""

from pathlib import Path

import pytest

from rlhf_recipes.report import ReportError
from rlhf_recipes.report.quickstart.run import is_quickstart, load_quickstart
from tests.report.quickstart.synthetic import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", prompts=6)


def test_reads_every_part(run: Path) -> None:
    assert is_quickstart(run)
    assert not is_quickstart(run / "ppo")
    loaded = load_quickstart(run)
    assert len(loaded.before.completions) == len(loaded.after.completions) == len(loaded.pairs) == 6
    assert loaded.evaluation["accuracy"]["pairs"] == 460123
    assert len(loaded.ppo.log_history) == 61
    assert loaded.ppo.settings["kl_coef"] == 0.05
    assert loaded.names == ["reward_model", "judge", "vader", "plain_prose"]


def test_malformed_jsonl_names_the_file_and_the_line(run: Path) -> None:
    path = run / "after/completions.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = lines[2][:40]
    path.write_text("\n".join(lines))
    with pytest.raises(ReportError, match=r"after/completions\.jsonl, line 3 is not valid JSON: column \d+"):
        load_quickstart(run)


def test_a_line_separator_inside_a_text_is_no_new_row(run: Path) -> None:
    for side in ("before", "after"):
        (run / side / "completions.jsonl").write_text(
            '{"prompt": "a", "completion": "b\u2028c"}\n\n', encoding="utf-8"
        )
    assert [completion.text for completion in load_quickstart(run).after.completions] == ["b\u2028c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "line 1 must be a JSON object, found a list"),
        ('{"completion": "x"}', "'prompt' must be text or a list of messages, found nothing"),
        ('{"prompt": "x", "completion": 3}', r"'completion' must be text or a list of messages, found a number \(3\)"),
        ('{"prompt": "x", "completion": "y", "scores": {"a": "b"}}', "'scores' must map each reward's name"),
        ("", "holds no rows"),
    ],
)
def test_rows_of_completions_are_checked(run: Path, row: str, message: str) -> None:
    (run / "before/completions.jsonl").write_text(row)
    with pytest.raises(ReportError, match=rf"before/completions\.jsonl.*{message}"):
        load_quickstart(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json is not valid JSON: line 1"),
        ("metrics.json", "[]", "metrics.json must hold one JSON object, found a list"),
        ("metrics.json", '{"ppo": 3}', "'ppo' must be an object of figures"),
        ("metrics.json", '{"ppo": {"kl": "low"}}', r"'ppo\.kl' must be a number, found text"),
        ("metrics.json", '{"ppo": {"gain_ci95": [1]}}', r"'ppo\.gain_ci95' must be two numbers"),
        ("ppo/log_history.json", "{}", "log_history.json must hold a list of objects"),
        ("ppo/config.yaml", "a: [1", "config.yaml is not valid YAML"),
        ("ppo/config.yaml", "- 1", "config.yaml must hold settings"),
    ],
)
def test_malformed_files_are_named(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(ReportError, match=message) as refused:
        load_quickstart(run)
    assert str(run / name) in str(refused.value)
    assert "run the step that writes it again" in str(refused.value)


def test_bytes_that_are_no_text(run: Path) -> None:
    (run / "judge/metrics.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ReportError, match=r"judge/metrics\.json is not UTF-8 text"):
        load_quickstart(run)


def test_different_prompts_are_refused(run: Path) -> None:
    path = run / "after/completions.jsonl"
    rows = path.read_text().rstrip("\n").split("\n")
    path.write_text("\n".join([rows[0], rows[2], rows[1], *rows[3:]]))
    with pytest.raises(ReportError, match=r"Row 2 of .*before/completions\.jsonl has the prompt 'What I liked"):
        load_quickstart(run)
    path.write_text("\n".join(rows[:4]))
    with pytest.raises(
        ReportError, match=r"before/completions\.jsonl has 6 rows and .*after/completions\.jsonl has 4"
    ):
        load_quickstart(run)
