"""The page and the README of a reward model: what they say, and that nothing but text comes out of texts."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard

from rlhf_recipes.modeling.calibration import LinearCalibration, LogisticCalibration, OrdinalCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report import write_report
from rlhf_recipes.report.heat import HeatMap, WordAttribution, heat_pieces
from rlhf_recipes.report.reward_card import write_card, write_page
from rlhf_recipes.report.reward_sections import headline
from rlhf_recipes.report.reward_usage import plain_code
from rlhf_recipes.reward_modeling.evaluation.measure import measure
from rlhf_recipes.reward_modeling.explain import heat_maps
from rlhf_recipes.rewards.learned import LearnedReward
from tests.reward_modeling.evaluation.test_measure import columns_of
from tests.reward_modeling.tiny_models import tiny_step_model
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

ARGS = SimpleNamespace(per_device_eval_batch_size=8, min_gap=0.5, rating_low=-4, rating_high=4, loss_args=None)
EVIL = "<script>alert('x')</script> | **bold** [link](http://evil.example) &amp; {{ 7 * 7 }} \u202eabc"
DATA = {
    "splits": {
        "train": {"format": "ratings (completion, score)", "rows": 8427, "kept": 8400, "left_out": {"empty text": 27},
                  "noted": {"very long text": 2}}
    },
    "cleaning": [{"step": "near duplicates", "before": 8427, "after": 8400, "dropped": 27}],
    "agreement": {"alpha_interval": 0.8, "pairwise_ceiling": 0.997, "icc_k": None},
    "loss": "pairs_in_batch",
    "config": {"model_name_or_path": "org/encoder", "dataset_name": "org/ratings", "hub_token": "hf_abcdefgh1234"},
}  # fmt: skip


class Reader(HTMLParser):
    """Tags, what they point to, and the text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.text, self.ids = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def reward_folder(path, kind="ratings", columns=None, model=None, **settings):
    """A folder as the recipe leaves it: a model, measured."""
    tokenizer = tiny_tokenizer("bert")
    save_tiny(path, model or tiny_classifier(tokenizer), tokenizer)
    RewardModelSettings(**settings).save(path)
    rows = Dataset.from_dict(columns or columns_of(kind))
    metrics = measure(path, rows, rows if kind == "ratings" else None, rows, ARGS)
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def page_of(folder, **facts):
    page = write_card(folder, **facts)
    assert page == folder / "report.html"
    return Reader(page.read_text(encoding="utf-8"))


def test_the_page_says_what_the_files_say(tmp_path):
    folder = reward_folder(tmp_path / "mine")
    metrics = json.loads((folder / "metrics.json").read_text())
    page = page_of(folder, data=DATA)
    assert f"puts {metrics['pairwise_accuracy']:.1%} of {metrics['pairs']:,} held-out pairs" in page.text  # at chance
    for text in ("8,427", "27 empty text", "2 very long text", "dropped 27", "pairs_in_batch", "0.997"):
        assert text in page.text, text
    assert "Krippendorff" in page.text
    assert "icc" not in page.text.lower().replace("icc(", "")  # what is not known is not shown
    assert page.tags.count("svg") == 4  # accuracy, margins, reliability, best of n


@pytest.mark.parametrize(
    "kind", ["pairs", "votes", "rankings", "best_worst", "unpaired", "clicks", "dwell", "objectives"]
)
def test_every_kind_has_a_page_and_a_readme(tmp_path, kind):
    page = page_of(reward_folder(tmp_path / "mine", kind))
    assert "Which text is better?" in page.text
    assert len(page.ids) == len(set(page.ids))  # the ids of all pictures share one page
    card = ModelCard.load(tmp_path / "mine/README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert "What it is worth" in card.text


def test_a_process_reward_model_has_its_own(tmp_path):
    tokenizer, model = tiny_step_model()
    folder = save_tiny(tmp_path / "process", model, tokenizer)
    rows = Dataset.from_dict({"completions": [["a", "b"], ["c", "d"]], "labels": [[1.0, 0.0], [1.0, 1.0]]})
    (folder / "metrics.json").write_text(json.dumps(measure(folder, rows, None, rows, ARGS)))
    page = page_of(folder)
    assert "held-out steps right from wrong" in page.text
    assert "StepReward" in page.text
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == "token-classification"


def test_texts_are_text_and_nothing_is_loaded(tmp_path):
    columns = columns_of("pairs")
    columns["chosen"] = [f"{EVIL} {row}" for row in range(12)]
    folder = reward_folder(tmp_path / "mine", "pairs", columns)
    # Some pairs are turned, whatever the model: both orders of the same texts.
    data = {"splits": {EVIL: {"format": EVIL, "rows": 1, "kept": 1, "left_out": {EVIL: 1}}}, "loss": EVIL}
    page = page_of(folder, data=data, title=EVIL)
    assert "script" not in page.tags
    assert "alert('x')" in page.text
    assert all(address.startswith("#") for address in page.addresses)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search(r"https?://(?!www\.w3\.org)(?!evil)", html)
    readme = ModelCard.load(folder / "README.md").text  # what is rendered, without the metadata
    assert "<script>" not in readme
    assert "[link](" not in readme


def test_the_readme_has_metadata_and_no_secrets(tmp_path):
    folder = reward_folder(tmp_path / "mine")
    page_of(folder, data=DATA, repo_id="me/my-reward", license="apache-2.0")
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "org/encoder"
    assert data["datasets"] == ["org/ratings"]
    assert data["license"] == "apache-2.0"
    assert data["metrics"] == ["accuracy", "mae", "pearsonr"]
    assert {"rlhf-recipes", "reward-model"} <= set(data["tags"])
    figure = data["model-index"][0]["results"][0]["metrics"][0]
    assert (figure["type"], figure["value"]) == (
        "accuracy",
        json.loads((folder / "metrics.json").read_text())["pairwise_accuracy"],
    )
    assert "me/my-reward" in card.text
    assert "hf_abcdefgh1234" not in card.content + (folder / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in card.content


def test_worst_cases_are_read_aloud_and_whole(tmp_path):
    folder = tmp_path
    family = "👩‍👩‍👧‍👦"
    worst = [
        {"prompt": "", "text": family * 200, "human": 2.0, "score": -1.5},
        {"prompt": "Which?", "better": "this", "worse": "that", "better_score": 0.0, "worse_score": 3.0, "share": 0.9},
    ]
    (folder / "evaluation.json").write_text(json.dumps({"kind": "ratings", "worst": worst}))
    page = Reader(write_page(folder).read_text(encoding="utf-8"))
    assert "people 2.00, model −1.50" in page.text
    shown = re.search(f"{family[0]}.* …", page.text).group()
    assert len(shown.removesuffix(" …")) % len(family) == 0
    assert "90% of votes, score 0.00" in page.text
    assert "Which?" in page.text


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither evaluation.json nor metrics.json"):
        write_card(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is not valid JSON"):
        write_card(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match="one JSON object"):
        write_card(tmp_path)


def test_metrics_of_an_earlier_run_are_enough(tmp_path):
    metrics = {"pairwise_accuracy": 0.82, "pairwise_accuracy_ci95": [0.8, 0.84], "pairs": 100, "pearson": 0.7}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = Reader(write_page(tmp_path, title="old").read_text(encoding="utf-8"))
    assert "Puts 82.0% of 100 held-out pairs in people's order (95% interval 80.0% to 84.0%)." in page.text


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"pairwise_accuracy": 0.52, "pairwise_accuracy_ci95": [0.47, 0.57], "pairs": 400,
          "length_accuracy": 0.55, "vader_accuracy": 0.5},
         "At chance: it puts 52.0% of 400 held-out pairs in people's order (95% interval 47.0% to 57.0%). "
         "Of the same pairs, length 55.0% and VADER 50.0%. The model is no better than length."),
        ({"pairwise_accuracy": 0.4, "pairwise_accuracy_ci95": [0.3, 0.5], "pairs": 90}, "At chance: it puts 40.0%"),
        ({"pairwise_accuracy": 0.3, "pairwise_accuracy_ci95": [0.2, 0.4], "pairs": 90}, "Worse than chance: it puts"),
        ({"pairwise_accuracy": 1.0, "pairwise_accuracy_ci95": None, "pairs": 3}, "At chance, as far as so few rows"),
        ({"pairwise_accuracy": 0.7, "pairwise_accuracy_ci95": [0.6, 0.8], "pairs": 90, "vader_accuracy": 0.8},
         "Puts 70.0% of 90 held-out pairs in people's order (95% interval 60.0% to 80.0%). Of the same pairs, "
         "VADER 80.0%. The model is no better than VADER."),
        ({"step_accuracy": 0.8, "step_accuracy_ci95": [0.7, 0.9], "steps": 50, "step_base_accuracy": 0.75},
         "At the level of one answer for all: it tells 80.0% of 50 held-out steps right from wrong"),
        ({"step_accuracy": 0.8, "step_accuracy_ci95": [0.7, 0.9], "steps": 50}, "Tells 80.0% of 50 held-out steps"),
        ({}, "Measured on held-out feedback"),
    ],
)  # fmt: skip
def test_the_headline_says_what_is_no_better_than_chance(figures, said):
    assert headline({}, figures).startswith(said)


def test_a_wide_table_says_in_each_cell_what_it_is(tmp_path):
    page_of(reward_folder(tmp_path / "mine"), data=DATA)
    html = (tmp_path / "mine/report.html").read_text()
    assert 'data-label="95% interval"' in html  # below each other on a narrow screen, where six columns are cut off
    for wide in re.findall(r'class="card scroll wide([^"]*)".*?<thead><tr>(.*?)</tr>', html, re.DOTALL):
        assert ("stack" in wide[0]) == (wide[1].count("<th") > 3)


def test_bias_is_drawn_where_it_was_measured(tmp_path):
    folder = reward_folder(tmp_path / "mine", "pairs")
    without = page_of(folder)
    covariates = {"length": {"partial": 0.3, "partial_ci95": [0.1, 0.5]}}
    page = page_of(folder, bias={"covariates": covariates, "changes": {}, "encodings": {}, "groups": None})
    assert "Beyond people's ratings" in page.text
    assert page.tags.count("svg") == without.tags.count("svg") + 1
    assert len(page.ids) == len(set(page.ids))


def test_the_page_can_be_made_again_from_the_folder_alone(tmp_path):
    folder = reward_folder(tmp_path / "mine")
    heat = HeatMap("a good", (WordAttribution("good", 2, 6, 2.0),), (), 1.0, 0.0, 0.0, 16, "mine")
    data = {key: value for key, value in DATA.items() if key != "config"}
    page = write_card(folder, data=data, heat=([heat], ""), by_trl={"correlation": 0.98123}, title="Mine")
    first = page.read_bytes()
    page.unlink()
    assert write_report(folder).read_bytes() == first
    assert b"0.9812" in first
    write_card(folder, data=DATA)
    assert "hf_abcdefgh1234" not in "".join(file.read_text() for file in folder.glob("*.json"))


def test_how_trls_own_reading_differs_is_told(tmp_path):
    folder = reward_folder(tmp_path / "mine", "pairs")
    page = page_of(folder, by_trl={"correlation": 0.98123, "texts": 50})
    assert "Measured on this model: correlation 0.9812, texts 50." in page.text


# ---- code that can be pasted


def pasted(folder, settings, monkeypatch):
    """What the code leaves behind, run beside the folder, whose own path is no part of a card."""
    monkeypatch.chdir(folder.parent)
    names = {}
    exec(plain_code(folder.name, settings), names)
    return names


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    "calibration",
    [
        None,
        LogisticCalibration(0.5, -0.1, -4.0, 4.0),
        LinearCalibration(2.0, 1.0),
        OrdinalCalibration((-1.0, 0.5), (1.0, 2.0, 4.0)),
    ],
    ids=["plain", "logistic", "linear", "ordinal"],
)
def test_code_for_transformers_alone_gives_the_same_score(tmp_path, monkeypatch, kind, calibration):
    tokenizer = tiny_tokenizer(kind)
    save_tiny(tmp_path, tiny_classifier(tokenizer, kind), tokenizer)
    settings = RewardModelSettings(calibration=calibration, append_eos=kind == "llama", max_length=6)
    settings.save(tmp_path)
    names = pasted(tmp_path, settings, monkeypatch)
    wanted = LearnedReward(tmp_path)(["The film is"], [" a delight."])[0]
    assert names["score" if calibration is None else "rating"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("probabilities", [False, True])
def test_code_for_several_outputs_gives_the_same_score(tmp_path, monkeypatch, probabilities):
    tokenizer = tiny_tokenizer("bert")
    labels = {0: "1", 1: "2", 2: "3"}
    model = tiny_classifier(tokenizer, num_labels=3, id2label=labels, label2id={name: i for i, name in labels.items()})
    save_tiny(tmp_path, model, tokenizer)
    settings = RewardModelSettings(labels={"1": 1.0, "2": 2.0, "3": 3.0}, probabilities=probabilities)
    settings.save(tmp_path)
    names = pasted(tmp_path, settings, monkeypatch)
    assert names["score"] == pytest.approx(LearnedReward(tmp_path)(["The film is"], [" a delight."])[0], abs=1e-5)


def test_yaml_of_the_page_is_yaml(tmp_path):
    folder = reward_folder(tmp_path / "mine", "pairs")
    page_of(folder, repo_id="me/my-reward")
    text = (folder / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)
    assert yaml.safe_load(block) == {"reward_funcs": [{"func": "me/my-reward", "name": "reward_model", "weight": 1.0}]}


# ---- heat maps


def test_heat_maps_keep_the_text_and_scale_to_the_strongest_word():
    words = (
        WordAttribution("good", 2, 6, 2.0),
        WordAttribution("bad", 7, 10, -1.0),
        WordAttribution("far", 12, 15, None),
    )
    heat = HeatMap("a good bad, far", words, (), 1.0, 0.0, 0.0, 16, "mine")
    pieces = heat_pieces(heat)
    assert "".join(piece[0] for piece in pieces) == heat.text
    assert [piece[1:] for piece in pieces if piece[1]] == [
        ("up", "0.60", "+2.000"),
        ("down", "0.30", "−1.000"),
        ("unread", "", "not read"),
    ]


def test_heat_maps_of_a_few_texts(tmp_path):
    pytest.importorskip("captum")
    folder = reward_folder(tmp_path / "mine")
    page = page_of(folder, heat=heat_maps(folder, count=2))
    assert "What moves the score" in page.text
    assert len(re.findall(r"score [−\d.]+, blank text", page.text)) == 2
