"""The page as a whole: what it says, what it leaves out, and that nothing in a completion can break it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_recipes.report import write_report
from rlhf_recipes.report.__main__ import main
from tests.report.quickstart.synthetic import COMMANDS, write_json, write_jsonl, write_run

VOID = {"meta", "wbr", "br", "col", "img", "input", "link", "hr", "path", "use"}


class Page(HTMLParser):
    """Collects the tags with their attributes and the text of a page, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in ("data", "code", "span"):
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data
            self.parts.append(data)

    def words(self) -> str:
        return " ".join(self.text.split())

    def spaced(self) -> str:
        """The words, with a space between the cells of a table and the like."""
        return " ".join("".join(self.parts).split())


def render(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def html(whole: Path) -> str:
    return render(whole)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", prompts=14)


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, content)


def headline(folder: Path) -> str:
    words = Page(render(folder)).words()
    return words[words.index(" PPO ") + 1 : words.index("Score: what")]


def test_every_section_and_figure_is_there(html: str) -> None:
    page = Page(html)
    assert page.open == []
    figures = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 9 + 1 + 3 + 1  # training, histogram, reward model, agreement
    assert all(figures)
    assert "Left out" not in page.text
    assert "All 128 prompts" in page.text
    for heading in ("1 What changed", "2 Training", "3 The reward model", "4 The judge", "5 How to repeat it"):
        assert heading in page.text


def test_ids_are_unique(html: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_those_of_the_files(small: Path) -> None:
    ppo = {"prompts": 128, "score_before": 0.1234567, "score_after": 1.3571113, "gain": 1.2336546, "kl": 4.1214}
    ppo |= {"gain_ci95": [1.0171, 1.4452], "distinct2_before": 0.8, "distinct2_after": 0.76, "peak_memory_gb": 2.31}
    reward = {"pairwise_accuracy": 0.81234, "single_rater_accuracy": 0.89121, "vader_accuracy": 0.67932}
    write_json(small / "metrics.json", {"ppo": ppo, "reward_model": reward, "total_seconds": 787.3})
    html = render(small)
    for exact, shown in (
        ("0.1234567", "0.12"),
        ("1.3571113", "1.36"),
        ("1.2336546", "+1.23"),
        ("1.0171", "+1.02"),
        ("4.1214", "4.12"),
        ("0.81234", "81.2%"),
        ("0.89121", "89.1%"),
        ("787.3", "13 min 7 s"),
        ("2.31", "2.3 GB"),
        ("0.6931", "0.6931"),  # pearson, from reward/metrics.json
    ):
        assert f'<data value="{exact}">{shown}</data>' in html
    assert '<data value="0.95">0.95</data>' in html or '<data value="0.9499999999999998">0.95</data>' in html


@pytest.mark.usefixtures("undrawn")
def test_headline_of_a_gain_a_loss_and_no_change(small: Path) -> None:
    ppo = {"score_before": 0.12, "score_after": 1.34, "gain": 1.22, "gain_ci95": [1.02, 1.41], "kl": 4.1}
    write_json(small / "metrics.json", {"ppo": ppo})
    gain = "PPO raised the held-out score from 0.12 to 1.34 (+1.22, 95% interval [+1.02, +1.41]) at a KL of 4.10 nats."
    assert headline(small).strip() == gain

    ppo |= {"score_after": -0.30, "gain": -0.42, "gain_ci95": [-0.9, 0.06], "judge_before": 0.2, "judge_after": 0.1}
    write_json(small / "metrics.json", {"ppo": ppo})
    loss = headline(small)
    assert "PPO lowered the held-out score from 0.12 to −0.30 (−0.42, 95% interval [−0.90, +0.06])" in loss
    assert "The interval includes 0: this change may be chance." in loss
    assert "By a judge that took no part in training it fell from 0.20 to 0.10 (−0.10)." in loss

    write_json(small / "metrics.json", {"ppo": {"score_before": 0.12, "score_after": 0.123, "gain": 0.003}})
    assert "PPO left the held-out score where it was: 0.12 before, 0.12 after (+0.00)." in headline(small)


def test_says_what_the_things_are(html: str) -> None:
    words = Page(html).words()
    for statement in (
        "third party's 4-bit weights (Q4_1), dequantized",
        "not chat preferences",
        "calibrated to the human rating on the validation split",
        "another backbone",
        "trained on other rows",
        "Every prompt of the evaluation",
        "temperature 1 and top_p 1",
        "Paired over prompts",
        "nats per completion",
    ):
        assert statement in words


@pytest.mark.usefixtures("undrawn")
def test_claims_nothing_about_another_model_and_data_set(small: Path) -> None:
    (small / "ppo/config.yaml").write_text("model_name_or_path: org/my-model\n")
    (small / "reward/config.yaml").write_text("model_name_or_path: same/base\ndataset_name: org/my-data\n")
    (small / "judge/config.yaml").write_text("model_name_or_path: same/base\n")
    words = Page(render(small)).words()
    assert "org/my-model" in words
    assert "org/my-data" in words
    assert "Q4_1" not in words
    assert "another backbone" not in words


def test_completions_are_text_and_never_markup(html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "link", "object", "form", "b"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert('before')</script> and <b>bold</b> claims </td></tr></table>" in page.text
    assert '"><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }} {% raw %}' in page.text
    assert "echo '<b>done</b>' && ls" in page.text
    assert "empty completion" in page.text
    assert "nothing but white space" in page.text
    assert "bell ␇, escape ␛[31mred␛[0m, nul ␀" in page.text
    assert "half a pair � and a noncharacter �" in page.text


def test_reward_names_are_text_and_never_markup_or_formulas(small: Path) -> None:
    for side in ("before", "after"):
        path = small / side / "completions.jsonl"
        path.write_text(path.read_text().replace("plain_prose", "<b>$cost$</b>"))
        edit(small / side / "metrics.json", "reward/<b>$cost$</b>", value=0.5)
    history = small / "ppo/log_history.json"
    history.write_text(history.read_text().replace("reward/plain_prose", "reward/<i>$x_1$</i>"))
    page = Page(render(small))
    assert not {tag for tag, _ in page.tags} & {"b"}
    assert "<b>$cost$</b>" in page.text
    assert "<i>$x_1$</i>" in page.text


def test_loads_nothing_from_anywhere(html: str) -> None:
    for _, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    assert set(re.findall(r"url\(([^)]{1})", html)) == {"#"}
    assert 'http-equiv="Content-Security-Policy" content="default-src' in html
    assert "matplotlib" not in html.lower().replace("matplotlib.axis", "")  # no creator, date or version in a figure
    assert len(html.encode()) < 1_500_000


def test_colours_of_figures_come_from_the_style_sheet(html: str) -> None:
    figures = html[html.index("<svg") : html.rindex("</svg>")]
    assert "var(--ink)" in figures
    assert not re.findall(r"(?:fill|stroke): #010[23]", figures)


def test_same_run_gives_the_same_bytes(whole: Path, html: str, tmp_path: Path) -> None:
    assert write_report(whole, output=tmp_path / "again.html").read_bytes() == html.encode()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("metrics.json", "no metrics.json in this run, which has the figures at a glance"),
        ("reward/metrics.json", "because the run has none: reward/metrics.json. It is made by"),
        ("reward/evaluation.json", "because the run has none: reward/evaluation.json. It is made by"),
        ("judge/metrics.json", "because the run has none: judge/metrics.json. It is made by"),
        ("ppo/log_history.json", "because the run has none: ppo/log_history.json. It is made by"),
        ("before/metrics.json", "because the run has none: before/metrics.json. It is made by"),
        ("after/completions.jsonl", "because the run has none: after/completions.jsonl. It is made by"),
        ("ppo/config.yaml", "because the run has none: ppo/config.yaml. It is made by"),
        ("environment.json", "because the run has none: environment.json"),
    ],
)
def test_a_missing_part_is_one_line_with_a_command(small: Path, part: str, sentence: str) -> None:
    (small / part).unlink()
    words = Page(render(small)).words()
    assert sentence in words
    assert re.search(r"It is made by (make quickstart|accelerate launch recipes/)", words)


def test_each_part_alone_is_enough_for_a_page(small: Path, tmp_path: Path) -> None:
    for number, part in enumerate(["metrics.json", "environment.json", "reward", "judge", "ppo", "before", "after"]):
        alone = tmp_path / f"alone{number}"
        alone.mkdir()
        copy = shutil.copytree if (small / part).is_dir() else shutil.copy
        copy(small / part, alone / part)
        assert Page(render(alone)).open == []


@pytest.mark.usefixtures("undrawn")
def test_without_a_result_the_headline_says_so(small: Path) -> None:
    (small / "metrics.json").unlink()
    assert "PPO raised the held-out score" in Page(render(small)).words()  # from the two evaluations
    (small / "after/metrics.json").unlink()
    assert "A run without a result yet" in Page(render(small)).words()


@pytest.mark.usefixtures("undrawn")
def test_files_of_different_runs_are_pointed_out(small: Path) -> None:
    assert "Files that do not agree" not in render(small)
    edit(small / "metrics.json", "ppo", "score_before", value=3.5)
    assert "metrics.json says that the score before is 3.500" in Page(render(small)).words()


def test_unknown_and_null_values_do_not_crash(small: Path) -> None:
    write_json(
        small / "metrics.json", {"ppo": {"score_before": float("nan"), "gain_ci95": None}, "commands": COMMANDS}
    )
    write_json(small / "ppo/log_history.json", [{"episode": 16, "objective/kl": float("nan"), "loss/value_avg": 0.1}])
    row = {
        "prompt": [{"role": "user", "content": "Hello"}],
        "completion": "x" * 5000,
        "scores": {"reward_model": None},
    }
    for side in ("before", "after"):
        write_json(small / side / "metrics.json", {"score": None})
        write_jsonl(small / side / "completions.jsonl", [row])
    words = Page(render(small)).words()
    assert "user: Hello" in words
    assert "(3,500 more characters)" in words


def test_a_run_of_one_prompt(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", prompts=1)
    words = Page(render(run)).words()
    assert "Best changes" not in words  # it would be the worst as well
    assert "1 of all 1 prompts" in words


def test_command_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "deep/er/page.html"
    assert main([str(small), "--output", str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"Report: {target} (")
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    assert main([str(small)]) == 0
    assert (small / "report.html").is_file()


@pytest.mark.parametrize("arguments", [["no/such/run"], ["{empty}"], ["{run}", "--output", "{empty}"]])
def test_command_line_errors_have_no_traceback(
    arguments: list[str], small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(empty=empty, run=small) for argument in arguments])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")
