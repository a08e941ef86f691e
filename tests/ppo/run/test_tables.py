"""The table of completions: in the console, in files, and read back out of the trackers."""

import contextlib
import html
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback

from rlhf_recipes.ppo.run.tables import columns_of, markdown, report, save, show, spread
from rlhf_recipes.texts import readable, shorten


def row(score=0.5, **changed):
    return {
        "prompt": "Say something nice.",
        "completion": "What a film!",
        "score": score,
        "kl": 1.25,
        "tokens": 4,
        "finished": True,
        "MiniLM": score,
        "brevity": None,
        **changed,
    }


CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, who are you?"}]


# ---- which rows, and how a text is told


def test_the_best_the_worst_and_evenly_between_are_chosen():
    rows = [row(float(score)) for score in (3, 9, 1, 7, 5, 0, 8, 2, 6, 4)]
    assert [r["score"] for r in spread(rows, 4)] == [9, 6, 3, 0]
    assert [r["score"] for r in spread(rows, 2)] == [9, 0]
    assert [r["score"] for r in spread(rows[:5], 1)] == [5]  # the middle of 9 7 5 3 1
    assert [r["score"] for r in spread(rows[:3], 5)] == [9, 3, 1]


def test_a_score_that_is_no_number_counts_as_the_worst():
    rows = [row(float("nan")), row(-5.0), row(2.0)]
    assert [r["score"] for r in spread(rows, 2)][0] == 2
    assert spread(rows, 2)[1] is rows[0]


def test_messages_are_told_by_their_roles():
    assert readable(CHAT) == "user: Hello\nassistant: Hi, who are you?"
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert readable([{"role": "user", "content": parts}]) == "user: [image] What is it?"
    assert readable([{"role": "assistant", "content": None}]) == "assistant: "


def test_a_long_text_keeps_its_beginning_and_its_end():
    assert shorten("abcdefgh", 8) == "abcdefgh"
    assert shorten("abcdefghi", 4) == "ab [... 5 characters ...] hi"


def test_columns_are_texts_figures_and_every_reward_of_any_row():
    rows = [row(), row(late=0.1)]
    assert columns_of(rows) == [
        *("prompt", "completion", "score", "kl", "tokens", "finished", "MiniLM", "brevity", "late"),
    ]


# ---- the console


def shown(capsys, *args, **kwargs):
    show(*args, **kwargs)
    out = capsys.readouterr()
    assert out.out == ""  # stdout is for results
    return out.err


def test_the_table_has_texts_and_figures(capsys):
    said = shown(capsys, [row(prompt=CHAT), row(-2.0, finished=False)], "Rollout 3")
    assert "Rollout 3" in said
    for expected in (
        *("user: Hello↵assistant: Hi,", "What a film!", "score 0.5", "MiniLM 0.5", "brevity -", "kl 1.25"),
        *("4 tokens, ended", "4 tokens, cut off", "score -2"),
    ):
        assert expected in said
    assert "of 2" not in said


def test_of_many_rows_it_says_how_many_are_shown(capsys):
    said = shown(capsys, [row(float(score)) for score in range(9)], "Rollout 3", limit=3)
    assert "Rollout 3 (3 of 9, from the best to the worst score)" in said
    assert [line.split("score ")[1].split()[0] for line in said.splitlines() if "score " in line and "│" in line] == [
        *("8", "4", "0"),
    ]


def test_markup_emoji_names_and_control_characters_are_shown_as_they_are(capsys):
    text = "[red]no[/red] :smile: \x1b[2J\r\a\u202e end\n"
    said = shown(capsys, [row(completion=text, prompt="[/]")], "[bold]title[/bold]")
    assert r"[red]no[/red] :smile: \x1b[2J\r\x07\u202e end↵" in said
    assert "[bold]title[/bold]" in said
    assert "[/]" in said
    assert not set(said) & set("\x1b\r\a\u202e")


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_no_line_is_wider_than_the_screen_and_nothing_is_lost(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [row(**{f"reward_{number}": 0.5 for number in range(9)}, completion="word " * 20)]
    said = shown(capsys, rows, "A title that is longer than thirty characters")
    assert max(len(line) for line in said.splitlines()) <= columns
    assert said.count("word") == 20
    letters = "".join(character for character in said if character.isalnum() or character == "_")
    assert columns == 30 or all(f"reward_{number}05" in letters.replace(".", "") for number in range(9))


def test_a_file_gets_lines_of_120_without_colours(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        show([row()], "Rollout 3")
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert {len(line) for line in lines[1:]} == {120}
    assert "\x1b" not in "".join(lines)


def test_a_log_in_ascii_takes_any_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    show([row(completion="süß\n漢 \ud800")], "Größe")
    sys.stderr.flush()
    assert rb"s\xfc\xdf\n\u6f22 \ud800" in raw.getvalue()


def test_the_table_stands_above_a_progress_bar(capsys):
    with tqdm(total=4, desc="PPO", file=sys.stderr) as bar:
        bar.update(1)
        show([row()], "Rollout 3")
    said = capsys.readouterr().err
    # The line of the bar is wiped before the title, and drawn again after the last line of the table.
    before, _, after = said.partition("Rollout 3")
    assert before.endswith("\r")
    assert "PPO:  25%" in after.rpartition("┘")[2]


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit is 0; give 1 or more"):
        show([row()], "Rollout 3", limit=0)


# ---- files


def test_all_rows_are_saved_as_they_are_and_again_over_the_same_step(tmp_path):
    path = save([row(prompt=CHAT), row(completion="zwei\nZeilen: ü")], tmp_path, step=12)
    assert path == tmp_path / "completions/step_000012.jsonl"
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["prompt"] == CHAT
    assert second == row(completion="zwei\nZeilen: ü")
    assert save([row(9.0)], tmp_path, step=12) == path
    assert [json.loads(line)["score"] for line in path.read_text().splitlines()] == [9.0]
    assert [entry.name for entry in path.parent.iterdir()] == ["step_000012.jsonl"]


def test_figures_that_json_cannot_say_are_null(tmp_path):
    path = save([row(float("nan"), kl=float("inf"), tokens=4)], tmp_path, step=1)
    saved = json.loads(path.read_text())
    assert (saved["score"], saved["kl"], saved["tokens"]) == (None, None, 4)


# ---- trackers


def test_a_markdown_table_escapes_what_markdown_and_html_would_read():
    table = markdown(["prompt", "score"], [["a|b *c* <eos>\n_d_ & `e`", 0.123456], [r"\d [x](y)", None]])
    assert table.splitlines() == [
        "| prompt | score |",
        "| --- | --- |",
        r"| a&#124;b \*c\* &lt;eos&gt;<br>\_d\_ &amp; \`e\` | 0.1235 |",
        r"| \\d \[x\](y) | - |",
    ]


def test_callbacks_that_keep_no_tables_are_passed_over_and_no_tracker_is_imported(monkeypatch, capsys):
    for tracker in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, tracker, None)  # importing it is an ImportError from here on
    report([row()], [PrinterCallback(), TrainerCallback()], step=8)
    report([row()], [], step=8)
    assert capsys.readouterr().out == ""


def begin(callback, folder, main_process=True):
    """As the Trainer begins: on the main process a callback opens its writer, on the others it does not."""
    state = TrainerState(is_world_process_zero=main_process, is_local_process_zero=main_process)
    args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, run_name="run")
    callback.on_train_begin(args, state, TrainerControl(), model=None)
    return args, state


def test_tensorboard_shows_the_texts_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    callback = TensorBoardCallback()
    report([row()], [callback], step=0)  # before the training has begun there is no writer
    begin(callback, tmp_path)
    report([row(prompt=CHAT, completion="1 < 2 | <eos> *x*")], [PrinterCallback(), callback], step=8)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (event,) = events.Tensors("completions/text_summary")
    assert event.step == 8
    page = markdown_to_safe_html(event.tensor_proto.string_val[0])  # what TensorBoard shows
    assert page.count("<td>") == 8
    assert "<td>user: Hello<br>assistant: Hi, who are you?</td>" in page
    assert "<td>1 < 2 | <eos> *x*</td>" in html.unescape(page)
    assert "<eos>" not in page


def test_tensorboard_of_another_process_is_left_alone(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    callback = TensorBoardCallback()
    begin(callback, tmp_path, main_process=False)
    report([row()], [callback], step=8)
    assert not (tmp_path / "tb").exists()


def test_wandb_gets_a_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = WandbCallback()
    report([row()], [callback], step=0)  # no run: nothing is logged, and nothing is started
    assert wandb.run is None
    begin(callback, tmp_path)
    try:
        report([row(prompt=CHAT), row(tokens=7, brevity=1)], [callback], step=8)
    finally:
        wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/completions_*.table.json")
    saved = json.loads(file.read_text())
    assert saved["columns"] == ["prompt", "completion", "score", "kl", "tokens", "finished", "MiniLM", "brevity"]
    assert saved["data"] == [
        ["user: Hello\nassistant: Hi, who are you?", "What a film!", 0.5, 1.25, 4, True, 0.5, None],
        ["Say something nice.", "What a film!", 0.5, 1.25, 7, True, 0.5, 1],
    ]


def test_trackio_gets_a_table(tmp_path):
    pytest.importorskip("trackio")
    # In a process of its own, because trackio decides at its import where it writes.
    code = (
        "import trackio; from transformers.integrations import TrackioCallback\n"
        "from tests.ppo.run.test_tables import CHAT, begin, report, row\n"
        "callback = TrackioCallback()\n"
        "report([row()], [callback], step=0)  # no run\n"
        f"begin(callback, {str(tmp_path)!r})\n"
        "report([row(prompt=CHAT)], [callback], step=8)\n"
        "trackio.finish()\n"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    root = str(Path(__file__).parents[3])
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, env=environment, capture_output=True, timeout=250
    )
    (file,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        logged = [json.loads(line) for (line,) in database.execute("select metrics from metrics")]
    (entry,) = [entry for entry in logged if "completions" in entry]
    assert entry["train/global_step"] == 8
    assert entry["completions"] == {
        "_type": "trackio.table",
        "_value": [row(prompt="user: Hello\nassistant: Hi, who are you?")],
    }
