"""A card says what a run's files say, and nothing that comes from outside is more than text on it."""

import getpass
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.saving import save_policy
from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.ppo.metrics import GLOSSARY
from rlhf_recipes.report.markdown import clean_config
from rlhf_recipes.report.policy_card import RunFacts, Sample, config_of, facts_of_run, write_model_card
from rlhf_recipes.report.run import Reward
from tests.hub_double import HubDouble
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

CONFIG = {
    "model_name_or_path": "org/base-1b",
    "dataset_name": "org/prompts",
    "dataset_train_split": "train[:80%]",
    "reward_funcs": [{"func": "runs/reward", "name": "helpful", "weight": 0.5}, "my_rewards.py:brevity"],
    "max_completion_length": 7,
    "temperature": 0.7,
    "use_peft": True,
}


def entry(episode: int, score: float, kl: float) -> dict[str, float]:
    """What the trainer logs of one rollout, as far as the card reads it."""
    return {
        "loss": 0.1,
        "reward/helpful": score / 2,
        "objective/scores": score,
        "objective/kl": kl,
        "rollout/completion_length": 12.5,
        "policy/ratio": 1.01,
        "time/sample": 3.0,
        "episode": episode,
        "step": episode // 8,
    }


HISTORY = [
    entry(64, 0.25, 0.0),
    {"eval_objective/scores": 0.5, "eval_objective/kl": 1.0, "eval_runtime": 3.0},
    entry(128, 1.0, 2.0),
    entry(1280, 1.75, 4.0),
    {"eval_objective/scores": 1.5, "eval_objective/kl": 3.5, "eval_runtime": 3.0},
    {"train_runtime": 12.0, "train_loss": 0.1},
]


def card_of(folder: Path, facts: RunFacts) -> tuple[ModelCard, str]:
    """The card as the Hub's own client reads it back, and its text."""
    path = write_model_card(folder, facts)
    assert path == folder / "README.md"
    return ModelCard.load(path), path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags of a page, where its links and pictures point to, and the text of each cell of its tables."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.in_cell = False
        renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.feed(renderer.render(markdown))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag in ("td", "th"):
            self.in_cell = True
            self.cells.append("")
        elif tag == "br":
            self.cells[-1] += "\n"

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.cells[-1] += data


def rows(page: Page, width: int, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is given."""
    start = page.cells.index(heading)
    return [page.cells[i : i + width] for i in range(start, len(page.cells) - width + 1, width)]


# ---- what it says


def test_metadata_names_base_data_and_library(tmp_path):
    facts = facts_of_run(CONFIG, HISTORY[:1], adapter=True, license="apache-2.0")
    data = card_of(tmp_path, facts)[0].data.to_dict()
    assert data == {
        "base_model": "org/base-1b",
        "datasets": ["org/prompts"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf-recipes", "ppo", "rlhf", "lora"],
    }


def test_a_merged_model_is_one_of_transformers_and_an_unknown_license_is_left_out(tmp_path):
    facts = facts_of_run(CONFIG, HISTORY[:1], adapter=False, method="RLOO")
    data = card_of(tmp_path, facts)[0].data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["rlhf-recipes", "rloo", "rlhf"]
    assert "license" not in data
    assert "model-index" not in data  # no figures on held-out prompts


def test_figures_on_held_out_prompts_become_the_model_index(tmp_path):
    facts = facts_of_run(CONFIG, HISTORY, adapter=True, repo_id="me/tuned")
    (index,) = card_of(tmp_path, facts)[0].data.to_dict()["model-index"]
    assert index["name"] == "tuned"
    (result,) = index["results"]
    assert result["dataset"] == {"name": "org/prompts", "type": "org/prompts"}
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("objective/scores", 1.5), ("objective/kl", 3.5)]


@pytest.mark.parametrize("name", ["starter/smollm2-135m-instruct", "/home/alice/base", "runs/sft", "./base"])
def test_a_local_base_or_dataset_is_no_id_of_the_hub(tmp_path, name):
    facts = RunFacts(base_model=name, dataset_name=name, adapter=False)
    data = card_of(tmp_path, facts)[0].data.to_dict()
    assert "base_model" not in data
    assert "datasets" not in data


def test_a_folder_here_that_looks_like_an_id_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/base-1b").mkdir(parents=True)
    data = card_of(tmp_path, facts_of_run(CONFIG, [], adapter=False))[0].data.to_dict()
    assert "base_model" not in data
    assert data["datasets"] == ["org/prompts"]


def test_the_first_paragraph_sums_it_up_in_two_sentences(tmp_path):
    _, text = card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True, num_examples=9000))
    assert (
        "Adapters for [`org/base-1b`](https://huggingface.co/org/base-1b), tuned with PPO so that its completions "
        "score higher under `helpful` and `brevity`. It took 1,280 episodes with prompts from "
        "[`org/prompts`](https://huggingface.co/datasets/org/prompts) (9,000 in the split "
        "<code>train&#91;&#58;80%&#93;</code>); the mean score went from 0.25 to 1.75 at a KL divergence of 4.0 nats "
        "from the reference."
    ) in text


def test_tables_show_the_figures_with_their_meaning(tmp_path):
    page = Page(card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True, glossary=GLOSSARY))[1])
    table = rows(page, 4, "figure")
    assert table[:5] == [
        ["figure", "first rollout", "last rollout", "what it is"],
        ["objective/scores", "0.250", "1.75", GLOSSARY["objective/scores"]],
        ["reward/helpful", "0.125", "0.875", "This reward before its weight; mean over episodes."],
        ["objective/kl", "0", "4.00", GLOSSARY["objective/kl"]],
        ["rollout/completion_length", "12.5", "12.5", GLOSSARY["rollout/completion_length"]],
    ]
    assert table[6] == ["policy/ratio", "1.01", "1.01", GLOSSARY["policy/ratio"]]  # folded away, in a table of its own
    assert "time/sample" not in page.cells
    held_out = page.cells[page.cells.index("value") - 1 :]
    assert held_out[3:9] == [
        *["objective/scores", "1.50", GLOSSARY["objective/scores"]],
        *["objective/kl", "3.50", GLOSSARY["objective/kl"]],
    ]
    rewards = rows(page, 3, "reward")
    assert rewards[1:3] == [["helpful", "0.5", "runs/reward"], ["brevity", "1", "my_rewards.py:brevity"]]


def test_every_glossary_entry_reads_as_it_was_written(tmp_path):
    facts = RunFacts(
        "org/b", "org/d", adapter=False, metrics={n: 1.0 for n in GLOSSARY if "/" in n}, glossary=GLOSSARY
    )
    cells = Page(card_of(tmp_path, facts)[1]).cells
    assert {meaning for name, meaning in GLOSSARY.items() if "/" in name} <= set(cells)


def test_curves_are_pictures_beside_the_card(tmp_path):
    _, text = card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True))
    pictures = re.findall(r"\]\((card/[^)]*)\)", text)
    assert pictures == ["card/score.png", "card/kl.png", "card/length.png"]
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "![objective/scores over the episodes: from 0.25 to 1.75]" in text
    first = (tmp_path / "card/score.png").read_bytes()
    write_model_card(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True))
    assert (tmp_path / "card/score.png").read_bytes() == first  # the same log gives the same file


def test_one_rollout_has_no_curve_and_an_old_one_goes(tmp_path):
    write_model_card(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True))
    _, text = card_of(tmp_path, facts_of_run(CONFIG, HISTORY[:1], adapter=True))
    assert "card/" not in text
    assert list((tmp_path / "card").iterdir()) == []
    assert "first rollout" not in text


def test_a_run_of_which_nothing_is_known_has_a_card_too(tmp_path):
    card, text = card_of(tmp_path, facts_of_run({}, [], adapter=False))
    assert "which is <code>an unnamed model</code>, tuned with PPO so that its completions score higher." in text
    assert "## Limits" in text
    assert card.data.library_name == "transformers"


def test_figures_that_are_no_numbers_are_not_shown(tmp_path):
    history = [entry(64, float("nan"), 1.0), entry(128, 1.0, float("inf"))]
    _, text = card_of(tmp_path, facts_of_run(CONFIG, history, adapter=True))
    assert "nan" not in text
    assert "inf" not in text
    assert "| `objective/scores` | – | 1.00 |" in text


def test_the_critic_is_named_where_there_is_one(tmp_path):
    facts = facts_of_run(CONFIG, HISTORY, adapter=True)
    assert "critic/" not in card_of(tmp_path, facts)[1]
    (tmp_path / "critic").mkdir()
    assert "`critic/` holds the value head" in card_of(tmp_path, facts)[1]


def test_the_settings_on_the_page_are_the_run_itself(tmp_path):
    _, text = card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True))
    block = re.search(r"<summary>The settings of the run</summary>\n\n```yaml\n(.*?)\n```", text, re.DOTALL)
    assert yaml.safe_load(block.group(1)) == CONFIG


def test_options_of_a_trainer_without_a_yaml(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), kl_coef=0.2, use_cpu=True, hub_token="hf_abcdefghijkl")
    config = config_of(args)
    assert config["kl_coef"] == 0.2
    assert "hub_token" not in config
    assert "learning_rate" not in config  # a default


# ---- the snippet


def snippet(text: str) -> str:
    return re.search(r"```python\n(.*?)\n```", text, re.DOTALL).group(1)


def test_the_snippet_is_the_right_one(tmp_path):
    merged = snippet(card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=False, repo_id="me/tuned"))[1])
    assert 'repo = "me/tuned"' in merged
    assert "AutoModelForCausalLM.from_pretrained(repo)" in merged
    assert "peft" not in merged
    assert "max_new_tokens=7, do_sample=True, temperature=0.7" in merged
    adapter = snippet(card_of(tmp_path, facts_of_run(CONFIG, HISTORY, adapter=True, repo_id="me/tuned"))[1])
    assert "AutoPeftModelForCausalLM.from_pretrained(repo)" in adapter
    local = CONFIG | {"model_name_or_path": "/home/alice/base-1b"}
    beside = snippet(card_of(tmp_path, facts_of_run(local, HISTORY, adapter=True, glossary=GLOSSARY))[1])
    assert 'base = AutoModelForCausalLM.from_pretrained("base-1b")' in beside
    assert "PeftModel.from_pretrained(base, repo)" in beside


@pytest.mark.parametrize("kind", ["merged", "adapter", "adapter on a local base"])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_snippet_runs(tmp_path, capsys, monkeypatch, kind, conversational):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer(chat_template=True)
    base = tiny_causal_lm(tokenizer)
    save_tiny(tmp_path / "base-1b", base, tokenizer)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    policy.peft_config["default"].base_model_name_or_path = "base-1b"
    run = save_policy(policy, tmp_path / "run", merge=kind == "merged")
    tokenizer.save_pretrained(run)
    config = CONFIG | {"model_name_or_path": "base-1b" if kind.endswith("base") else "org/base-1b"}
    facts = facts_of_run(config, HISTORY, adapter=kind != "merged", conversational=conversational)
    code = snippet(card_of(run, facts)[1]).replace("your-name/your-model", str(run))
    torch.manual_seed(0)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


# ---- nothing but text


HOSTILE = [
    "# Heading\n\n- item\n1. one\n> quote",
    "| a | b |\n|---|---|\n| c | d |",
    "```python\nimport os\n```\n~~~\n",
    "<script>alert(1)</script><img src=x onerror=alert(1)> <!-- hidden",
    "</td></tr></table></details><h1>Mine now</h1>",
    "[click](https://evil.example/a) ![pixel](https://evil.example/p.png) <https://evil.example>",
    "[ref]: https://evil.example\n[ref]",
    "see https://evil.example/x or www.evil.example or me@evil.example",
    "**bold** _slanted_ ~~gone~~ `code` \\*escaped\\* &lt;b&gt; &#60;b&#62;",
    "$$x^2$$ \\(y\\) $z$ :smile:",
    "---\nlicense: mit\n---",
    "=====\nheading above",
    "C:\\dir\\ 5 * 3 * 2 | 4",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_completion_is_text_and_nothing_else(tmp_path, hostile):
    plain = RunFacts("org/base-1b", "org/prompts", adapter=False, samples=[Sample("harmless", "harmless", 1.0)])
    expected = Page(card_of(tmp_path, plain)[1])
    facts = RunFacts("org/base-1b", "org/prompts", adapter=False, samples=[Sample(hostile, hostile, 1.0)])

    card, text = card_of(tmp_path, facts)

    page = Page(text)
    assert [tag for tag in page.tags if tag != "br"] == [tag for tag in expected.tags if tag != "br"]
    assert page.addresses == expected.addresses
    prompt, completion, score = rows(page, 3, "prompt")[1]
    # What the reader sees is what the policy wrote, line by line; runs of blanks are one blank on any page.
    assert prompt == completion == "\n".join(" ".join(line.split()) for line in hostile.strip().splitlines())
    assert score == "1.00"
    assert card.data.to_dict().get("license") is None
    # Renderers that make links of bare addresses find none in the source.
    body = text.split("## What it writes")[1].split("##")[0]
    assert not re.search(r"https?:/|www\.|@", body)


def test_what_cannot_be_seen_is_shown_and_long_texts_are_cut(tmp_path):
    completion = "a\x00b\x1b[31m\u202eltr" + "x" * 1000
    facts = RunFacts("org/b", "org/d", adapter=False, samples=[Sample("p", completion)])
    cell = rows(Page(card_of(tmp_path, facts)[1]), 2, "prompt")[1][1]
    assert cell.startswith("a\u2400b\u241b[31m\ufffdltrxxx")
    assert cell.endswith("x … (612 more characters)")  # 12 + 1000 of them, 400 shown


def test_names_are_text_too(tmp_path):
    evil = "</code><script>alert(1)</script>|`"
    facts = RunFacts(
        evil,
        evil,
        adapter=True,
        method="PPO",
        dataset_split=evil,
        rewards=[Reward(evil, 1.0, evil)],
        metrics={f"reward/{evil}": 1.0},
        versions={"torch": evil},
        repo_id=evil,
        command="echo\n```\n<script>",
        config={"prompt": "a\n```\n</details>\n~~~~\n<script>"},
        log_history=HISTORY,
    )
    card, text = card_of(tmp_path, facts)
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("details") == 1
    assert page.addresses == ["card/score.png", "card/kl.png", "card/length.png"]
    assert rows(page, 3, "reward")[1] == [evil, "1", evil]
    assert card.data.to_dict()["tags"] == ["rlhf-recipes", "ppo", "rlhf"]


# ---- nobody else's business


def test_paths_and_secrets_stay_at_home():
    config = {
        "model_name_or_path": "/home/alice/models/base-1b",
        "output_dir": "~/runs/ppo",
        "dataset_name": "C:\\Users\\alice\\prompts.jsonl",
        "resume_from_checkpoint": "../alice/checkpoint-8",
        "reward_funcs": [
            {"func": "/home/alice/my_rewards.py:brevity", "args": {"file": "file:///home/alice/words.txt"}},
            {"func": "https://bob:pass@host.example/score", "headers": {"X": "1"}, "api_key": "k"},
        ],
        "run_name": "resumed from /home/alice/runs/a and --config=/etc/me/b.yaml",
        "hub_token": "hf_abcdefghijklmnop",
        "note": "token hf_abcdefghijklmnop",
        "env": {"WANDB_API_KEY": "k"},
        "logging_dir": "runs/Nov22_host",
    }
    assert clean_config(config) == {
        "model_name_or_path": "base-1b",
        "output_dir": "ppo",
        "dataset_name": "prompts.jsonl",
        "resume_from_checkpoint": "checkpoint-8",
        "reward_funcs": [
            {"func": "my_rewards.py:brevity", "args": {"file": "words.txt"}},
            {"func": "https://[left out]host.example/score"},
        ],
        "run_name": "resumed from a and --config=b.yaml",
        "note": "token [left out]",
    }


def test_what_only_looks_like_a_path_or_a_secret_stays():
    config = {
        "dataset_name": "org/prompts",
        "output_dir": "runs/ppo",
        "stop_token": "</s>",
        "system": "Think. /no_think or A/B, 1 / 2",
        "template": "Answer in \\boxed{}: \n/think about it",
        "url": "https://host.example/a/b",
        "missing_eos_penalty": 1.0,
        "num_eos_tokens": 3,
        "push_to_hub": True,
    }
    assert clean_config(config) == config


def test_no_trace_of_the_machine_on_a_card(tmp_path):
    private = tmp_path / "alice-folder"
    config = CONFIG | {
        "model_name_or_path": str(private / "base-1b"),
        "dataset_name": str(private / "prompts.jsonl"),
        "reward_funcs": [f"{private}/my_rewards.py:brevity"],
        "output_dir": str(private / "run"),
    }
    command = f"accelerate launch recipes/ppo.py --config {private}/ppo.yaml"
    facts = facts_of_run(config, HISTORY, adapter=True, command=command)
    _, text = card_of(tmp_path / "out", facts)
    assert "alice" not in text
    assert str(tmp_path) not in text
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}/" not in text
    assert "--config ppo.yaml" in text
    assert "`my_rewards.py:brevity`" in text


# ---- the Hub


def test_the_hub_accepts_the_metadata(tmp_path, monkeypatch):
    facts = facts_of_run(CONFIG, HISTORY, adapter=True, samples=[Sample("---\na: [", "b", 1.0)])
    card, _ = card_of(tmp_path, facts)
    with HubDouble() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        card.validate()
        assert hub.requests == [("POST", "/api/validate-yaml")]


def test_importing_it_needs_no_trainer():
    code = "import sys, rlhf_recipes.report.policy_card; sys.exit('rlhf_recipes.ppo.trainer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
