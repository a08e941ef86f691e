"""What a push puts on the Hub, byte by byte, and what it keeps at home. The Hub is a double (tests/hub_double.py)."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_recipes.errors import PushError
from rlhf_recipes.hub import files_to_push, push_run
from rlhf_recipes.modeling.saving import save_policy
from tests.hub_double import HubDouble
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

CARD = b"---\nlibrary_name: transformers\n---\n# A policy\n"
PICTURE = b"\x89PNG\r\n\x1a\nnot really"
# Everything that a run, or its owner, may leave in the folder and that is nobody else's business.
FORBIDDEN = [
    ".env",
    ".recipe",
    "card/deeper/score.png",
    "card/notes.txt",
    "checkpoint-8/adapter_model.safetensors",
    "checkpoint-8/optimizer.pt",
    "completions.jsonl",
    "config.yaml",
    "critic/optimizer.pt",
    "global_step8/mp_rank_00_model_states.pt",
    "log_history.json",
    "metrics.json",
    "model-draft.safetensors",
    "my_rewards.py",
    "optimizer.pt",
    "other-run/model.safetensors",
    "ppo_state.pt",
    "rng_state.pth",
    "rollout.pt",
    "runs/events.out.tfevents.1",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
]


@pytest.fixture(params=[False, True], ids=["inline", "lfs"])
def hub(request, monkeypatch):
    """The double, once with all files in the commit and once with large files beside it, as git LFS sends them."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param)
    with HubDouble(large_files=request.param) as double:
        yield double


@pytest.fixture(autouse=True)
def _no_token_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def adapted(tokenizer, base):
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return policy.eval()


def save_run(folder: Path, policy, tokenizer, merge: bool = False) -> Path:
    """A folder as a run leaves it, with all that must stay at home."""
    save_policy(policy, folder, merge=merge)
    tokenizer.save_pretrained(folder)
    (folder / "critic").mkdir()
    save_file({"weight": torch.ones(1, 32), "bias": torch.zeros(1)}, folder / "critic/value_head.safetensors")
    (folder / "README.md").write_bytes(CARD)
    (folder / "card").mkdir()
    (folder / "card/score.png").write_bytes(PICTURE)
    for name in FORBIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"SECRET hf_token_of_somebody")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


SHARED = ["README.md", "card/score.png", "critic/value_head.safetensors", "generation_config.json"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("merge", "policy_files"),
    [(True, ["config.json", "model.safetensors"]), (False, ["adapter_config.json", "adapter_model.safetensors"])],
    ids=["merged", "adapter"],
)
def test_the_model_goes_up_byte_by_byte_and_all_else_stays(tokenizer, tmp_path, hub, merge, policy_files):
    policy = adapted(tokenizer, tiny_causal_lm(tokenizer))
    folder = save_run(tmp_path / "run", policy, tokenizer, merge)
    before = contents(folder)

    commit = push_run(folder, "me/tiny", token=hub.token, endpoint=hub.url, commit_message="After 640 episodes")

    repo = hub.repos["me/tiny"]
    assert sorted(repo.files) == sorted([*SHARED, *TOKENIZER, *policy_files])
    assert repo.files == {name: before[name] for name in repo.files}
    assert b"SECRET" not in b"".join(repo.files.values())
    assert contents(folder) == before
    assert [c.summary for c in repo.commits] == ["initial commit", "After 640 episodes"]
    assert commit.oid == repo.head.oid
    assert hub.large_files == any(method == "PUT" for method, _ in hub.requests)
    assert repo.visibility == "public"


def test_the_list_of_files_can_be_looked_at_and_shortened(tokenizer, tmp_path):
    folder = save_run(tmp_path / "run", tiny_causal_lm(tokenizer), tokenizer)
    everything = ["config.json", *SHARED, "model.safetensors", *TOKENIZER]
    assert files_to_push(folder) == sorted(everything)
    assert files_to_push(folder, ignore=["critic/*", "*.png"]) == sorted(
        {*everything} - {"critic/value_head.safetensors", "card/score.png"}
    )


def test_shards_and_code_of_a_model_go_up_too(tmp_path):
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_mine.py",
    ]
    for name in names:
        (tmp_path / name).write_text("{}")
    assert files_to_push(tmp_path) == names


def test_a_later_push_replaces_the_weights_and_leaves_other_files_of_the_repository(tokenizer, tmp_path, hub):
    first = save_run(tmp_path / "first", adapted(tokenizer, tiny_causal_lm(tokenizer)), tokenizer)
    push_run(first, "me/tiny", token=hub.token, endpoint=hub.url)
    hub.repos["me/tiny"].head.files["NOTES.md"] = b"by hand"
    second = save_run(tmp_path / "second", tiny_causal_lm(tokenizer), tokenizer)
    (second / "card/score.png").rename(second / "card/kl.png")

    push_run(second, "me/tiny", token=hub.token, endpoint=hub.url)

    # Adapters beside a whole model would be loaded in its place.
    assert sorted(hub.repos["me/tiny"].files) == sorted(
        ["NOTES.md", "README.md", "card/kl.png", "config.json", "critic/value_head.safetensors"]
        + ["generation_config.json", "model.safetensors", *TOKENIZER]
    )
    (second / "README.md").unlink()
    (second / "card/kl.png").unlink()
    save_file({"weight": torch.zeros(1, 32)}, second / "critic/value_head.safetensors")
    push_run(second, "me/tiny", token=hub.token, endpoint=hub.url)
    assert {"README.md", "card/kl.png"} <= set(hub.repos["me/tiny"].files)  # the old card keeps its picture


def test_a_private_repository_is_private(tokenizer, tmp_path):
    with HubDouble() as hub:
        folder = save_tiny(tmp_path, tiny_causal_lm(tokenizer), tokenizer)
        push_run(folder, "tiny", token=hub.token, endpoint=hub.url, private=True)  # without an owner: one's own
        assert hub.repos["me/tiny"].visibility == "private"
        with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
            snapshot_download("me/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)


def test_the_token_is_taken_from_the_environment(tokenizer, tmp_path, monkeypatch):
    with HubDouble() as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        push_run(save_tiny(tmp_path, tiny_causal_lm(tokenizer), tokenizer), "me/tiny", endpoint=hub.url)
        assert "model.safetensors" in hub.repos["me/tiny"].files


@pytest.mark.parametrize(
    ("base", "pushed", "warns"),
    [
        ("/home/alice/models/base-1b", "base-1b", True),
        ("C:\\Users\\alice\\base-1b\\", "base-1b", True),
        ("runs/sft/final", "runs/sft/final", True),
        ("org/base-1b", "org/base-1b", False),
    ],
)
def test_the_way_to_a_local_base_is_not_published(tokenizer, tmp_path, caplog, base, pushed, warns):
    folder = save_run(tmp_path / "run", adapted(tokenizer, tiny_causal_lm(tokenizer)), tokenizer)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "critic/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with HubDouble() as hub, caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        push_run(folder, "me/tiny", token=hub.token, endpoint=hub.url)
        sent = json.loads(hub.repos["me/tiny"].files["adapter_config.json"])
        of_critic = json.loads(hub.repos["me/tiny"].files["critic/adapter_config.json"])
    assert of_critic == {"base_model_name_or_path": pushed}
    assert sent == config | {"base_model_name_or_path": pushed}
    assert json.loads((folder / "adapter_config.json").read_text()) == config  # what is here still finds its base
    assert caplog.text.count("local folder") == warns


# ---- what goes wrong


@pytest.fixture
def folder(tokenizer, tmp_path):
    return save_run(tmp_path / "run", tiny_causal_lm(tokenizer), tokenizer)


def refused(folder: Path, hub: HubDouble, **kwargs) -> str:
    """The message of a push that fails; the files must be as they were."""
    before = contents(folder)
    with pytest.raises(PushError) as caught:
        push_run(folder, **({"repo_id": "me/tiny", "token": hub.token, "endpoint": hub.url} | kwargs))
    assert contents(folder) == before
    message = str(caught.value)
    assert f"the files are in {str(folder)!r}" in message
    assert hub.token not in message
    return message


def test_without_a_token_nothing_is_tried(folder):
    with HubDouble() as hub:
        message = refused(folder, hub, token=None)
        assert "There is no token to push 'me/tiny' with" in message
        assert "hf auth login" in message
        assert hub.requests == []


def test_a_token_that_the_hub_does_not_know(folder):
    with HubDouble() as hub:
        message = refused(folder, hub, token="hf_expired")
    assert "does not accept the token (Invalid credentials in Authorization header)" in message
    assert "hf_expired" not in message


def test_an_owner_that_is_not_ours(folder):
    with HubDouble() as hub:
        message = refused(folder, hub, repo_id="somebody/tiny")
    assert "may not write to 'somebody/tiny'" in message
    assert "namespace 'somebody'" in message


@pytest.mark.parametrize("stage", ["create", "preupload", "batch", "upload", "commit"])
def test_a_refusal_at_any_stage_leaves_nothing_half_done(folder, monkeypatch, stage):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubDouble(large_files=True, refuse={stage: 403}) as hub:
        message = refused(folder, hub)
        assert f"(The double was told to refuse: {stage})" in message
        assert "may not write to 'me/tiny'" in message
        assert [repo.files for repo in hub.repos.values()] in ([], [{}])
        hub.refuse.clear()
        push_run(folder, "me/tiny", token=hub.token, endpoint=hub.url)  # the same call, once the reason is gone
        assert hub.repos["me/tiny"].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_no_network(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubDouble() as hub:
        pass  # it has stopped: nobody listens at its address any more
    message = refused(folder, hub)
    assert f"{hub.url} cannot be reached" in message
    assert "HF_ENDPOINT" in message


def test_offline_mode(folder, monkeypatch):
    with HubDouble() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()  # a client that was made online would go on
        try:
            assert "HF_HUB_OFFLINE is set" in refused(folder, hub)
        finally:
            huggingface_hub.close_session()


def test_a_card_that_the_hub_refuses(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    (folder / "README.md").write_text("---\ntags: [unfinished\n---\n")
    with HubDouble() as hub:
        message = refused(folder, hub)
    assert "'me/tiny' was not pushed: Invalid metadata in README.md" in message
    assert "while parsing a flow sequence" in message


def test_a_branch_that_is_not_there(folder):
    with HubDouble() as hub:
        assert "has no branch of the name" in refused(folder, hub, revision="experiment")


def test_a_name_that_is_none(folder):
    with HubDouble() as hub:
        assert "'me/tiny/3' is no name of a repository" in refused(folder, hub, repo_id="me/tiny/3")


def test_a_folder_without_a_policy_or_with_two(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither adapter_config\.json nor model\*\.safetensors"):
        push_run(tmp_path, "me/tiny", token="hf_x")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="adapters and a whole model"):
        push_run(tmp_path, "me/tiny", token="hf_x")


# ---- what others find

LOAD = """
import sys, torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.tensor([[5, 17, 300, 42]])
for name in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    with torch.no_grad():
        torch.save({"logits": model(input_ids=ids).logits, "ids": tokenizer("A dull script")["input_ids"],
                    "card": ModelCard.load(name).text}, f"{sys.argv[1]}/{name.split('/')[1]}.pt")
"""


@pytest.mark.slow
def test_whoever_loads_the_repository_gets_the_same_logits(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubDouble(large_files=True) as hub:
        _push_and_reload(hub, tokenizer, tmp_path)


def _push_and_reload(hub, tokenizer, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm(tokenizer), tokenizer)
    policy = adapted(tokenizer, AutoModelForCausalLM.from_pretrained(base))
    with torch.no_grad():
        expected = policy(input_ids=torch.tensor([[5, 17, 300, 42]])).logits
    own = AutoTokenizer.from_pretrained(base)
    push_run(base, "me/base", token=hub.token, endpoint=hub.url)
    policy.peft_config["default"].base_model_name_or_path = "me/base"  # as if it had been loaded from there
    push_run(save_run(tmp_path / "a", policy, own), "me/adapter", token=hub.token, endpoint=hub.url)
    push_run(save_run(tmp_path / "m", policy, own, merge=True), "me/merged", token=hub.token, endpoint=hub.url)

    # In a process of its own, because HF_ENDPOINT is read when huggingface_hub is imported.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                           "HF_HUB_OFFLINE": "0"}  # fmt: skip
    command = [sys.executable, "-c", LOAD, str(tmp_path), "me/adapter", "me/merged"]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)

    for name in ("adapter", "merged"):
        found = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)
        assert found["ids"] == own("A dull script")["input_ids"]
        assert found["card"] == ModelCard(CARD.decode()).text
