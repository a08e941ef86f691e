"""The starter kit, end to end on wheels made here: `pip download` is the real one, run on a local folder."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError

from rlhf_recipes.data.starter import fetch as starter_fetch
from rlhf_recipes.data.starter import make as starter
from rlhf_recipes.data.starter.__main__ import main
from rlhf_recipes.data.starter.fetch import StarterKitError, load_manifest
from rlhf_recipes.data.starter.make import lay_down

SENTENCES = """id\tsentiment\ttext\r
1\t2.5\tLovely &amp; Amazing   involves us.\r
2\t-1.0\tEh.\r
3\t3.0\tlovely & amazing involves us.\r
4\t1.0\tThe votes of this one say something else.\r
5\t1.0\tNobody voted on this one.\r
"""
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
VOTES = "1\t2.5\t0.5\t[2, 3]\r\n2\t-1\t0\t[-1, -1]\r\n3\t3\t0\t[3]\r\n4\t1\t0\t[2]\r\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tiny_gguf(path: Path) -> np.ndarray:
    """Write a one-layer Llama in Q4_1 whose pad is its EOS, like the real file; returns one matrix's true values."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    q4 = GGMLQuantizationType.Q4_1
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "he"]
    writer = GGUFWriter(path, "llama")
    for add, value in [
        (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 2), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, 10000.0),
        (writer.add_rope_dimension_count, 16), (writer.add_vocab_size, len(tokens)),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "smollm"), (writer.add_token_list, tokens),
        (writer.add_token_types, [3] * 3 + [1] * 257), (writer.add_token_merges, ["h e"]),
        (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_unk_token_id, 0),
        (writer.add_pad_token_id, 2),
        (writer.add_chat_template, CHAT_TEMPLATE),
    ]:  # fmt: skip
        add(value)
    generator = np.random.default_rng(0)
    matrices = {"token_embd": len(tokens)} | {
        f"blk.0.{name}": 32 for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    }
    for name, rows in matrices.items():
        packed = quantize(generator.standard_normal((rows, 32)).astype(np.float32), q4)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=q4)
        matrices[name] = packed
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dequantize(matrices["blk.0.ffn_up"], q4)


def add_wheel(house: Path, package: str, contents: dict[str, bytes], **entry) -> dict:
    """Put a wheel with these members into the folder that pip looks in; returns its manifest entry."""
    wheel = house / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"data/{name}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    members = [{"path": f"data/{name}", "save_as": name, "sha256": sha256(data)} for name, data in contents.items()]
    return {
        "package": package, "version": "1.0", "wheel_sha256": sha256(wheel.read_bytes()),
        "wheel_bytes": wheel.stat().st_size, "members": members, "disk_bytes": 1_000_000, "hub_id": None,
        "title": "A test", "licence": "MIT", "licence_id": "mit", "origin": "made here",
        "caveats": {"pypi": "of the wheel", "hub": "of the Hub"}, **entry,
    }  # fmt: skip


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Wheels of two cheap parts, pip pointed at them and at nothing else, and a manifest that can be changed."""
    house = tmp_path / "house"
    house.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(house), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    entries = [
        add_wheel(house, "tiny-files", {"config.json": b"{}", "1_Pooling/config.json": b"[1]"},
                  name="encoder", kind="files"),
        add_wheel(house, "tiny-ratings", {"truth.txt": SENTENCES.encode(), "votes.txt": VOTES.encode()},
                  name="ratings", kind="ratings"),
    ]  # fmt: skip
    manifest = tmp_path / "manifest.json"

    def run(*flags: str) -> int:
        manifest.write_text(json.dumps(entries), encoding="utf-8")
        return main(["--output_dir", str(tmp_path / "kit"), *flags], manifest)

    return SimpleNamespace(run=run, entries=entries, manifest=manifest, house=house, out=tmp_path / "kit")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


# --- the happy path --------------------------------------------------------------------------------------


def test_lays_down_plain_folders_and_a_second_call_does_nothing(kit, monkeypatch, capsys):
    assert kit.run() == 0
    assert (kit.out / "encoder" / "1_Pooling" / "config.json").read_bytes() == b"[1]"
    assert "of the wheel" in (kit.out / "encoder" / "README.md").read_text()
    assert not (kit.out / ".staging").exists()
    before = snapshot(kit.out)
    monkeypatch.setattr(starter_fetch.subprocess, "run", lambda *args, **kwargs: pytest.fail("no process needed"))
    capsys.readouterr()
    begun = time.monotonic()
    assert kit.run() == 0
    assert time.monotonic() - begun < 0.5
    assert snapshot(kit.out) == before
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: ready in {kit.out / name} (from pypi)" for name in ("encoder", "ratings")
    ]


def test_ratings_load_as_a_dataset_with_every_vote(kit, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(kit.out / "cache"))
    assert kit.run("--parts", "ratings") == 0
    assert not (kit.out / "encoder").exists()
    rows = [
        json.loads(line)
        for split in ("train", "validation", "test")
        for line in (kit.out / "ratings" / f"{split}.jsonl").read_text().splitlines()
    ]
    assert sorted(rows, key=lambda row: row["score"]) == [
        {"completion": "Eh.", "score": -1.0, "votes": [-1, -1]},
        {"completion": "Lovely & Amazing involves us.", "score": 2.5, "votes": [2, 3]},
    ]
    notes = json.loads((kit.out / "ratings" / ".complete.json").read_text())["notes"]
    counts = {"sentences": 5, "in_one_file_only": 1, "mean_mismatches": 1, "duplicates_removed": 1}
    assert counts.items() <= notes.items()
    assert sum(notes[f"rows_{split}"] for split in ("train", "validation", "test")) == 2


OF_DOCUMENTS = "id\tsentiment\ttext\n1_1\t1\tFirst.\n1_2\t2\tSecond.\n2_1\t-1\tOther.\n"
THEIR_VOTES = "\ufeff1_1\t1\t0\t[1]\n1_2\t2\t0\t[2]\n2_1\t-1\t0\t[-1]\n"  # one of the real files begins with this mark


@pytest.fixture
def sets(kit):
    """A wheel that holds three sets, as the real one does; one of them has sentences of documents."""
    contents = {"truth.txt": SENTENCES.encode(), "votes.txt": VOTES.encode()}
    contents |= {"of_documents.txt": OF_DOCUMENTS.encode(), "their_votes.txt": THEIR_VOTES.encode()}
    entry = add_wheel(kit.house, "tiny-sets", contents)
    plain, grouped = entry["members"][:2], entry["members"][2:]
    kit.entries[:] = [
        {**entry, "name": "film-ratings", "kind": "ratings", "members": plain},
        {**entry, "name": "nyt-ratings", "kind": "document-ratings", "members": grouped},
        {**entry, "name": "tweet-ratings", "kind": "ratings", "members": plain},
    ]
    return kit


def test_parts_in_one_wheel_fetch_it_once(sets, capsys):
    assert sets.run() == 0
    said = capsys.readouterr().out
    assert said.count("fetching tiny-sets 1.0") == 1
    assert said.count("tiny-sets 1.0 is fetched already") == 2
    assert not (sets.out / ".staging").exists(), "and it is gone in the end"
    rows = [json.loads(line) for file in (sets.out / "nyt-ratings").glob("*.jsonl") for line in file.open()]
    assert {row["completion"]: row["group"] for row in rows} == {
        "First.": "nyt-1", "Second.": "nyt-1", "Other.": "nyt-2",
    }  # fmt: skip
    assert "nyt-ratings: sentences 3, broken lines 0, in one file only 0, mean mismatches 0," in said
    assert "- documents: 2\n" in (sets.out / "nyt-ratings" / "README.md").read_text()


def test_a_kit_of_an_earlier_version_gets_what_is_new_and_keeps_what_it_has(sets, capsys):
    entries = list(sets.entries)
    sets.entries[:] = entries[:1]
    assert sets.run() == 0
    before = snapshot(sets.out / "film-ratings")
    sets.entries[:] = entries
    capsys.readouterr()
    assert sets.run() == 0
    said = capsys.readouterr().out
    assert "film-ratings: ready" in said
    assert said.count("fetching tiny-sets 1.0") == 1
    assert snapshot(sets.out / "film-ratings") == before
    assert (sets.out / "nyt-ratings" / starter.MARKER).exists()
    assert (sets.out / "tweet-ratings" / starter.MARKER).exists()


def test_a_wheel_that_holds_several_parts_is_counted_once(sets):
    sets.manifest.write_text(json.dumps(sets.entries), encoding="utf-8")
    assert starter.space_needed(load_manifest(sets.manifest)) == 1_000_000


def test_language_model_keeps_its_values_and_gets_a_pad_token_that_is_not_eos(kit, tmp_path, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    true_values = tiny_gguf(tmp_path / "tiny.gguf")
    contents = {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}
    kit.entries[:] = [add_wheel(kit.house, "tiny-model", contents, name="policy", kind="causal-lm")]
    assert kit.run() == 0
    written = capfd.readouterr()
    said = [line for line in written.out.splitlines() if "accelerator" not in line]  # where DeepSpeed is installed
    assert len(said) == 4, "fetch, extract, convert, done: nothing else in a log"
    assert written.err == ""
    folder = kit.out / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (0, 2)
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "he<|im_end|>"
    # digits first, then spaces: the two spaces before the 12 stay one run, as where the model was trained
    assert len(tokenizer.tokenize("he  12")) == len(["he", "Ġ", "Ġ", "1", "2"])
    assert [str(split[0]) for split in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12")] == ["1", "2"]
    saved = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert saved.dtype == np.float32
    assert np.array_equal(saved, true_values)


@pytest.mark.parametrize(("eos", "vocabulary"), [("<|endoftext|>", {"<|endoftext|>": 0}), ("</s>", {"</s>": 0})])
def test_a_model_whose_pad_token_cannot_be_mended_is_refused(eos, vocabulary):
    tokenizer = SimpleNamespace(eos_token=eos, pad_token=eos, get_vocab=lambda: vocabulary)
    with pytest.raises(StarterKitError, match=r"must be in the vocabulary and must not be EOS"):
        starter.mend_pad_token(SimpleNamespace(), tokenizer)


def test_source_hub_lays_down_the_same_folder(kit, tmp_path, monkeypatch):
    """The Hub itself is not reached here: `snapshot_download` is a double that returns a folder made in code."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tiny_gguf(tmp_path / "tiny.gguf")
    snapshot_folder = tmp_path / "0123abcd"
    options = {"gguf_file": "tiny.gguf"}
    dequantize = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **options, **dequantize)
    model.to(torch.bfloat16).save_pretrained(snapshot_folder)  # as the Hub has it: bfloat16, pad is EOS
    AutoTokenizer.from_pretrained(tmp_path, **options).save_pretrained(snapshot_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **kwargs: str(snapshot_folder))
    contents = {"tiny.gguf": b"not read"}
    kit.entries[:] = [
        add_wheel(kit.house, "tiny-model", contents, name="policy", kind="causal-lm", hub_id="some/model")
    ]
    assert kit.run("--source", "hub") == 0
    saved = AutoModelForCausalLM.from_pretrained(kit.out / "policy")
    assert saved.dtype == torch.float32
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight.float())
    assert (saved.config.pad_token_id, AutoTokenizer.from_pretrained(kit.out / "policy").pad_token_id) == (0, 0)
    assert json.loads((kit.out / "policy" / ".complete.json").read_text())["notes"]["hub_revision"] == "0123abcd"
    before = snapshot(kit.out)
    assert kit.run() == 0, "without --source, a complete part from either source counts"
    assert snapshot(kit.out) == before


@pytest.mark.parametrize("kind", [FileNotFoundError, *HfHubHTTPError.__bases__])
def test_hub_out_of_reach_is_one_clear_error(kit, monkeypatch, capsys, kind):
    def unreachable(*args, **kwargs):
        raise kind("ConnectError: Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    kit.entries[0]["hub_id"] = "some/encoder"
    error = failed(kit, capsys, "--source", "hub")
    assert "The Hub did not give some/encoder: ConnectError" in error
    assert "--source pypi" in error


# --- changed, moved, killed ------------------------------------------------------------------------------


def test_a_changed_manifest_or_a_lost_file_redoes_that_part_only(kit):
    assert kit.run() == 0
    ratings = snapshot(kit.out / "ratings")
    kit.entries[0] |= add_wheel(kit.house, "tiny-files", {"config.json": b"{ }"}, name="encoder", kind="files")
    assert kit.run() == 0
    assert (kit.out / "encoder" / "config.json").read_bytes() == b"{ }"
    assert not (kit.out / "encoder" / "1_Pooling").exists()
    (kit.out / "encoder" / "config.json").unlink()
    assert kit.run() == 0
    assert (kit.out / "encoder" / "config.json").read_bytes() == b"{ }"
    assert snapshot(kit.out / "ratings") == ratings


def test_files_the_user_added_or_changed_are_never_lost(kit, capsys):
    assert kit.run() == 0
    (kit.out / "encoder" / "config.json").write_bytes(b"{'mine': 1}")
    (kit.out / "encoder" / "notes.txt").write_text("mine")
    before = snapshot(kit.out)
    assert kit.run() == 0
    assert "changed since it was made, and kept: config.json" in capsys.readouterr().out
    kit.entries[0] |= add_wheel(kit.house, "tiny-files", {"config.json": b"{ }"}, name="encoder", kind="files")
    assert kit.run() == 1
    assert "added or changed since: config.json, notes.txt" in capsys.readouterr().err
    assert snapshot(kit.out) == before


OTHER_MOMENTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("fetch_wheel", "write_marker")]


@pytest.mark.parametrize("moment", [*OTHER_MOMENTS, "publish"])
def test_killed_at_any_moment_nothing_half_made_counts_and_the_next_call_completes(kit, tmp_path, moment):
    kit.manifest.write_text(json.dumps(kit.entries), encoding="utf-8")
    stuck = tmp_path / "stuck"
    script = f"""
import sys, time, pathlib
from rlhf_recipes.data.starter import make as starter
from rlhf_recipes.data.starter.__main__ import main
real = starter.{moment}
def slow(part, *rest):
    if {moment!r} == "write_marker":
        real(part, *rest)           # everything is there, only the folder is not yet in its place
    pathlib.Path({str(stuck)!r}).touch()
    time.sleep(60)
starter.{moment} = slow
main(["--output_dir", {str(kit.out)!r}], pathlib.Path({str(kit.manifest)!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[3]
    )
    while not stuck.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (kit.out / "encoder").exists()
    assert (kit.out / ".staging").exists(), "the killed run was at work"
    assert kit.run() == 0
    assert (kit.out / "encoder" / "config.json").read_bytes() == b"{}"
    assert not (kit.out / ".staging").exists()


def test_a_wheel_fetched_before_a_kill_is_not_fetched_again(kit, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starter, "write_card", stop)
        assert kit.run() == 130
    assert "run the same command to go on" in capsys.readouterr().err
    shutil.move(kit.house / "tiny_files-1.0-py3-none-any.whl", kit.house / "gone")
    assert kit.run() == 0
    assert "tiny-files 1.0 is fetched already" in capsys.readouterr().out


# --- errors: one paragraph each, exit code 1, nothing left that counts -----------------------------------


def failed(kit, capsys, *flags: str) -> str:
    """Run the command line, see that it fails as it should, and return its message."""
    assert kit.run(*flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, "one paragraph, no traceback"
    assert not (kit.out / "encoder" / starter.MARKER).exists()
    return error


def test_wrong_wheel_hash(kit, capsys):
    found, kit.entries[0]["wheel_sha256"] = kit.entries[0]["wheel_sha256"], "0" * 64
    error = failed(kit, capsys)
    assert f"has SHA-256 {found}, but the manifest expects {'0' * 64}" in error


def test_wrong_member_hash(kit, capsys):
    kit.entries[0]["members"][1]["sha256"] = "0" * 64
    error = failed(kit, capsys)
    assert f"1_Pooling/config.json in tiny-files==1.0 has SHA-256 {sha256(b'[1]')}" in error


def test_wheel_without_the_member(kit, capsys):
    kit.entries[0]["members"][0]["path"] = "data/model.safetensors"
    assert "has no member data/model.safetensors; it has data/config.json" in failed(kit, capsys)


def test_no_such_package(kit, capsys):
    kit.entries[0]["package"] = "no-such-package"
    assert "pip found no no-such-package==1.0" in failed(kit, capsys)


def test_no_network(kit, capsys, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = failed(kit, capsys)
    assert "pip could not reach its package index to fetch tiny-files==1.0" in error


def test_no_pip(kit, capsys, monkeypatch):
    monkeypatch.setattr(starter_fetch.importlib.util, "find_spec", lambda name: None)
    assert "-m ensurepip --upgrade" in failed(kit, capsys)


def test_no_space_seen_before_anything_is_fetched(kit, capsys, monkeypatch):
    monkeypatch.setattr(starter.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    assert "2 MB are free, and 2 MB are needed" in failed(kit, capsys)
    assert list(kit.out.iterdir()) == []


def test_space_that_runs_out_on_the_way(kit, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(starter.shutil, "copyfile", full)
    assert "No space for the starter kit" in failed(kit, capsys)
    assert not (kit.out / ".staging").exists(), "what was fetched is given back"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_the_user_has_there_is_refused_and_untouched(kit, capsys, tmp_path, kind):
    kit.out.mkdir()
    if kind == "folder":
        (kit.out / "encoder").mkdir()
        (kit.out / "encoder" / "model.safetensors").write_text("mine")
    elif kind == "file":
        (kit.out / "encoder").write_text("mine")
    else:
        (kit.out / "encoder").symlink_to(tmp_path / "nowhere")
    before = snapshot(kit.out)
    assert "was not made by the starter kit" in failed(kit, capsys)
    assert snapshot(kit.out) == before
    assert not (kit.out / "ratings").exists(), "refused before anything is fetched"


def test_output_dir_is_a_file(kit, capsys):
    kit.out.write_text("mine")
    assert "is a file; name a folder" in failed(kit, capsys)


# --- the manifest itself ---------------------------------------------------------------------------------


def test_the_manifest_names_its_parts_with_hashes_licences_and_caveats():
    parts = load_manifest()
    sets = ["movie-ratings", "amazon-ratings", "nyt-ratings", "tweet-ratings"]
    assert [part.name for part in parts] == ["smollm2-135m-instruct", "minilm-l6", *sets]
    assert len({part.wheel_sha256 for part in parts}) == 3, "the four sets are in one wheel"
    for part in parts:
        assert part.kind in starter.BUILDERS
        assert {len(digest) for digest in [part.wheel_sha256, *(member.sha256 for member in part.members)]} == {64}
        assert part.licence
        assert part.origin
        assert part.caveats.keys() == ({"pypi", "hub"} if part.hub_id else {"pypi"})


def test_lay_down_speaks_through_the_callers_function(kit):
    kit.manifest.write_text(json.dumps(kit.entries), encoding="utf-8")
    lines: list[str] = []
    lay_down(kit.out, load_manifest(kit.manifest), say=lines.append)
    assert any("encoder: done" in line for line in lines)
