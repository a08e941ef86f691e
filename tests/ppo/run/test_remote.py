"""Completions over HTTP. The server is a double: it holds a copy of the policy and speaks the two requests."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_recipes.modeling.generation import LocalGenerator, pad_left
from rlhf_recipes.ppo.run.remote import HTTPGenerator
from tests.ppo.helpers import TOKENIZER, largest_difference, trainer, weights


class Server(BaseHTTPRequestHandler):
    model = None
    requests = []
    failures = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.requests.append(self.path)
        if Server.failures:
            Server.failures -= 1
            return self.answer(503, {"error": "loading"})
        if self.path == "/load":
            Server.model = AutoModelForCausalLM.from_pretrained(body["folder"]).eval()
            return self.answer(200, {})
        if self.path != "/generate":
            return self.answer(404, {})
        rows = body["prompt_ids"]
        ids, mask = pad_left(rows, TOKENIZER.pad_token_id, max(map(len, rows)))
        config = GenerationConfig(**body["sampling"])
        made = LocalGenerator(Server.model).generate(ids, mask, config, body["row_keys"])
        end = TOKENIZER.eos_token_id
        lists = [row[: row.index(end) + 1] if end in row else row for row in made.completion_ids.tolist()]
        return self.answer(200, {"completion_ids": lists})

    def answer(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    Server.requests, Server.failures = [], 0
    server = ThreadingHTTPServer(("localhost", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()


def without_waiting(waited):
    async def sleep(seconds):
        waited.append(seconds)

    return sleep


def test_training_with_a_server_is_training_without_one(tmp_path, url):
    here = trainer(tmp_path / "here")
    here.train()
    there = trainer(tmp_path / "there", generator=HTTPGenerator(url, tmp_path / "weights"))
    there.train()
    assert Server.requests == ["/load", "/generate"] * 2  # new weights for each of the two rollouts
    assert largest_difference(weights(here), weights(there)) < 1e-7


def test_a_server_that_is_busy_is_asked_again(tmp_path, url, monkeypatch):
    waited = []
    monkeypatch.setattr("asyncio.sleep", without_waiting(waited))
    Server.failures = 2
    generator = HTTPGenerator(url, tmp_path, retries=2)
    trainer(tmp_path).roles.policy.save_pretrained(tmp_path / "model")
    assert generator._post("load", {"folder": str(tmp_path / "model")}) == {}
    for seconds, full in zip(waited, (1, 2), strict=True):
        assert full / 2 <= seconds <= full


def test_a_server_that_stays_away_or_does_not_know_is_named(tmp_path, url, monkeypatch):
    monkeypatch.setattr("asyncio.sleep", without_waiting([]))
    with pytest.raises(ConnectionError, match="nothing failed after 1 attempts: it answered 404"):
        HTTPGenerator(url, tmp_path)._post("nothing", {})
    with pytest.raises(ConnectionError, match="localhost:1/load failed after 2 attempts"):
        HTTPGenerator("http://localhost:1", tmp_path, retries=1)._post("load", {})


@pytest.mark.parametrize("rows", [None, [[5]], [[5], []], [[5], [6] * 9], [5, 6]])
def test_an_answer_that_does_not_fit_is_refused(tmp_path, monkeypatch, rows):
    generator = HTTPGenerator("http://nowhere", tmp_path)
    monkeypatch.setattr(generator, "_post", lambda *asked: {"completion_ids": rows})
    config = GenerationConfig(max_new_tokens=8, pad_token_id=0)
    with pytest.raises(ValueError, match="asked for 2 completions of 1 to 8 tokens"):
        generator.generate(torch.ones(2, 3).long(), torch.ones(2, 3).long(), config, [1, 2])


def test_a_server_on_this_machine_is_asked_directly_and_others_through_the_proxy_that_is_named(
    tmp_path, url, monkeypatch
):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://ann:s3cret@localhost:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    trainer(tmp_path).roles.policy.save_pretrained(tmp_path / "model")
    assert HTTPGenerator(url, tmp_path)._post("load", {"folder": str(tmp_path / "model")}) == {}
    with pytest.raises(
        ConnectionError, match="load through the proxy http://localhost:1 that .* failed after 1"
    ) as caught:
        HTTPGenerator("http://engine.example", tmp_path, retries=0)._post("load", {})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"x" * 3_000_000, "its answer is larger than 1 MB"),
        (b"[1]", r"it answered \[1\], and no object"),
        (b"{", "it answered something that is no JSON"),
        (b"[" * 100_000, "it answered something that is no JSON"),
    ],
)
def test_an_answer_that_is_none_is_refused_and_not_read_to_its_end(tmp_path, url, monkeypatch, answer, said):
    def raw(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(answer)

    monkeypatch.setattr(Server, "do_POST", raw)
    with pytest.raises(ValueError, match=f"/load: {said}"):
        HTTPGenerator(url, tmp_path)._post("load", {})
