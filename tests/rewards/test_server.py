"""The server of rewards, with uvicorn, in a thread; recipes/serve_reward.py as a process is in tests/recipes."""

import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import uvicorn

from rlhf_recipes.rewards import EndsWithSentence, LearnedReward, LengthWindow, RewardError, Vader, WeightedSum
from rlhf_recipes.rewards.remote import RemoteReward
from rlhf_recipes.rewards.server import listen, make_app
from tests.ppo.helpers import largest_difference, many_short_tokens, trainer, weights
from tests.tiny import tiny_classifier, tiny_tokenizer

BERT = tiny_tokenizer("bert")
ROWS = {
    "prompts": ["The film is", "It was", "The end"],
    "completions": [" great.", " so bad", "."],
    "completion_ids": [[1, 2, 3], [4, 5], [6]],
}


@contextlib.contextmanager
def serving(reward, **settings):
    """The address of a server of that reward."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(reward, **settings), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post(url, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{url}/score", content=content, headers=headers, timeout=60)


def brevity(completion_ids, **kwargs):
    return [-float(len(ids)) for ids in completion_ids]


def question(completions, **kwargs):
    """Applies to questions alone."""
    return [1.0 if text.endswith("?") else None for text in completions]


# ---- values


def test_a_weighted_sum_gives_sums_and_parts():
    rewards = WeightedSum([EndsWithSentence(), brevity], weights=[1.0, 0.5])
    with serving(rewards) as url:
        answer = post(url, ROWS)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.json() == {
            "rewards": [1 - 1.5, 0 - 1.0, 1 - 0.5],
            "parts": {"EndsWithSentence": [1.0, 0.0, 1.0], "brevity": [-3.0, -2.0, -1.0]},
        }
        health = httpx2.get(f"{url}/health").json()
        paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
    assert health == {"name": "weighted_sum", "parts": ["EndsWithSentence", "brevity"], "weights": [1.0, 0.5]}
    asked = paths["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {"prompts", "completions", "completion_ids", "columns"}


def test_a_single_reward_is_served_under_its_name():
    with serving(Vader(name="tone")) as url:
        # VADER's own README: 0.8316.
        body = {"prompts": ["VADER is smart,"], "completions": [" handsome, and funny."]}
        assert post(url, body).json()["rewards"] == pytest.approx([0.8316], abs=1e-4)
        assert httpx2.get(f"{url}/health").json()["name"] == "tone"


def test_a_row_that_no_reward_applies_to_is_null():
    with serving(question) as url:
        body = {"prompts": ["", ""], "completions": ["Why?", "Because."]}
        assert post(url, body).json() == {"rewards": [1.0, None], "parts": {"question": [1.0, None]}}
        assert RemoteReward(f"{url}/score")(**body) == [1.0, None]


def test_a_model_gives_over_http_what_it_gives_here():
    tokenizer = tiny_tokenizer("bert")
    reward = LearnedReward(tiny_classifier(tokenizer), tokenizer, name="judge")
    rows = {"prompts": [f"The film {n} is" for n in range(20)], "completions": [" good" * (n % 4) for n in range(20)]}
    here = reward(**rows)
    with serving(reward) as url:
        assert RemoteReward(f"{url}/score", batch_size=64)(**rows) == pytest.approx(here, abs=1e-6)
        # In other batches texts are padded otherwise, and float32 rounds otherwise.
        assert RemoteReward(f"{url}/score", batch_size=3)(**rows) == pytest.approx(here, abs=1e-4)


def test_columns_and_messages_reach_the_reward():
    def exact(completions, answer, **kwargs):
        return [float(completion[0]["content"] == one) for completion, one in zip(completions, answer, strict=True)]

    completions = [[{"role": "assistant", "content": text}] for text in ("4", "5 😀")]
    with serving(exact) as url:
        reward = RemoteReward(f"{url}/score")
        assert reward(prompts=["2 + 2", "3 + 1"], completions=completions, answer=["4", "4"]) == [1.0, 0.0]


def test_a_reward_may_compare_the_completions_of_a_prompt_also_where_rows_are_cut_into_batches():
    def share_of_same(prompts, completions, **kwargs):
        rows = list(zip(prompts, completions, strict=True))
        return [rows.count(row) / prompts.count(row[0]) for row in rows]

    prompts, completions = ["a", "b", "c"] * 4, ["x", "y", "z", "x", "w", "z", "v", "y", "z", "u", "y", "z"]
    with serving(share_of_same) as url:
        values = RemoteReward(f"{url}/score", batch_size=2)(prompts=prompts, completions=completions)
    assert values == [2 / 4, 3 / 4, 1, 2 / 4, 1 / 4, 1, 1 / 4, 3 / 4, 1, 1 / 4, 3 / 4, 1]


def test_ppo_with_a_served_reward_is_ppo_without_a_server(tmp_path):
    here = trainer(tmp_path / "here", reward=many_short_tokens)
    here.train()
    with serving(many_short_tokens) as url:
        there = trainer(tmp_path / "there", reward=RemoteReward(f"{url}/score", name="many_short_tokens"))
        there.train()
    assert largest_difference(weights(here), weights(there)) < 1e-7
    logs = [run.state.log_history for run in (here, there)]
    scores = [[log["objective/scores"] for log in of_run if "objective/scores" in log] for of_run in logs]
    assert len(scores[0]) == 2
    assert scores[0] == scores[1]


def test_a_reward_that_counts_tokens_says_that_it_has_none():
    with serving(LengthWindow(maximum=2)) as url:
        assert RemoteReward(f"{url}/score")(**ROWS) == [0.0, 1.0, 1.0]
        with pytest.raises(RewardError, match="LengthWindow counts tokens and needs completion_ids"):
            RemoteReward(f"{url}/score", send_ids=False)(**ROWS)


# ---- one at a time


def test_the_reward_sees_one_request_at_a_time_in_one_thread():
    inside, threads, lock = 0, set(), threading.Lock()

    def alone(completions, **kwargs):
        nonlocal inside
        with lock:
            inside += 1
        threads.add(threading.get_ident())
        time.sleep(0.005)  # for the others to come in, if they can
        assert inside == 1
        with lock:
            inside -= 1
        return [0.0] * len(completions)

    rows = {"prompts": list("abcdefgh"), "completions": list("abcdefgh")}
    with serving(alone) as url:
        assert RemoteReward(f"{url}/score", batch_size=1, max_concurrent=8)(**rows) == [0.0] * 8
    assert len(threads) == 1


def test_a_request_that_was_given_up_is_not_scored():
    scored, busy, may_go_on = [], threading.Event(), threading.Event()

    def slow(completions, **kwargs):
        scored.extend(completions)
        busy.set()
        may_go_on.wait(60)
        return [0.0] * len(completions)

    with serving(slow) as url:
        first = RemoteReward(f"{url}/score").start(prompts=["a"], completions=["first"])
        assert busy.wait(60)
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"prompts": ["b"], "completions": ["given up"]}).encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            httpx2.get(f"{url}/health")  # by then it waits for the first
        httpx2.get(f"{url}/health")  # by then the server knows that it is gone
        may_go_on.set()
        assert first() == [0.0]
        assert RemoteReward(f"{url}/score")(prompts=["c"], completions=["last"]) == [0.0]
    assert scored == ["first", "last"]


# ---- refusals


def test_a_token_is_asked_for_where_the_variable_is_set(monkeypatch):
    monkeypatch.setenv("SERVED_TOKEN", "s3cret")
    with serving(EndsWithSentence(), token_env="SERVED_TOKEN") as url:
        refused = [post(url, ROWS), post(url, ROWS, Authorization="Bearer wrong"), post(url, ROWS, Authorization="")]
        assert [answer.status_code for answer in refused] == [401] * 3
        assert refused[0].json() == {
            "detail": "This server wants the token that its SERVED_TOKEN holds, as a bearer token."
        }
        assert post(url, ROWS, Authorization="Bearer s3cret").status_code == 200
        assert httpx2.get(f"{url}/health").status_code == 200  # for whoever watches it
        assert RemoteReward(f"{url}/score", token_env="SERVED_TOKEN")(**ROWS) == [1.0, 0.0, 1.0]
        with pytest.raises(RewardError, match="401 Unauthorized.*environment variable OTHER_TOKEN, which is not set"):
            RemoteReward(f"{url}/score", token_env="OTHER_TOKEN")(**ROWS)


def test_no_token_is_asked_for_where_it_is_not_set(monkeypatch):
    monkeypatch.setenv("REWARD_API_TOKEN", "s3cret")
    with serving(EndsWithSentence(), token_env=None) as url:
        assert post(url, ROWS).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "body: Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        ({"prompts": ["a"]}, "completions: Field required"),
        ({"prompts": ["a"], "completions": [3]}, "completions.0.str: Input should be a valid string"),
        ({"prompts": [None], "completions": ["a"]}, "prompts.0.str: Input should be a valid string"),
        ({"prompts": ["a"], "completions": ["b"], "answers": [1]}, "answers: Extra inputs are not permitted"),
        (
            {"prompts": ["a", "b"], "completions": ["c"]},
            "There are 1 completions, but prompts 2: give one for",
        ),
        ({"prompts": ["a"], "completions": ["b"], "completion_ids": []}, "but completion_ids 0"),
        (
            {"prompts": ["a"], "completions": ["b"], "completion_ids": [["x"]]},
            "completion_ids.0.0: Input should be",
        ),
        ({"prompts": ["a"], "completions": ["b"], "columns": {"answer": [1, 2]}}, "but columns.answer 2"),
        (
            {"prompts": ["a"], "completions": ["b"], "columns": {"prompts": [1]}},
            "column 'prompts' has the name of",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_a_sentence(body, said):
    with serving(EndsWithSentence()) as url:
        answer = post(url, body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_many_mistakes_are_told_in_short():
    with serving(EndsWithSentence()) as url:
        detail = post(url, {"prompts": [1] * 50, "completions": ["a"] * 50}).json()["detail"]
    assert detail.endswith("(and 97 more)")  # a prompt could be two things, and is neither


def test_a_reward_that_raises_or_gives_nan_is_named_and_not_asked_again():
    calls = []

    def broken(completions, **kwargs):
        calls.append(completions)
        if "stop" in completions:
            raise ZeroDivisionError("no stars")
        return [float("nan")] * len(completions)

    with serving(broken) as url:
        reward = RemoteReward(f"{url}/score", backoff=0.001)
        with pytest.raises(RewardError, match="422 .*Reward 'broken' raised ZeroDivisionError: no stars. .* row 1"):
            reward(prompts=["a", "b"], completions=["go", "stop"])
        assert calls == [["go", "stop"], ["go"], ["stop"]]  # and then one by one, to name the row
        with pytest.raises(RewardError, match="422 .*Reward 'broken' returned nan, for row 0"):
            reward(prompts=["a"], completions=["go"])


def test_too_much_at_once_is_refused():
    with serving(EndsWithSentence(), max_rows=2, max_body_mb=0.001) as url:
        many, long = post(url, ROWS), post(url, {"prompts": ["a"], "completions": ["b" * 2000]})
        assert (many.status_code, long.status_code) == (413, 413)
        assert many.json()["detail"] == "3 rows are more than 2; send fewer at once."
        assert long.json()["detail"] == "The request is larger than 0.001 MB; send less at once."
        assert RemoteReward(f"{url}/score", batch_size=2)(**ROWS) == [1.0, 0.0, 1.0]
        with pytest.raises(RewardError, match=r"413 .* Send less in one request \(batch_size of"):
            RemoteReward(f"{url}/score", batch_size=3)(**ROWS)


@pytest.mark.parametrize("attribute", ["per_token", "wants_prompt_ids", "wants_ref_logprobs"])
def test_what_the_protocol_does_not_carry_is_refused_at_the_start(attribute):
    class Special:
        __name__ = "special"

        def __call__(self, completions, **kwargs):
            return [0.0] * len(completions)

    setattr(Special, attribute, True)
    with pytest.raises(ValueError, match="Reward 'special' cannot be served: it .* the protocol"):
        make_app(WeightedSum([EndsWithSentence(), Special()]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_rows": 0}, "max_rows of a reward server is 0"),
        ({"max_body_mb": 0}, "above 0"),
        ({"max_text_mb": float("nan")}, "max_text_mb of a reward server is nan"),
        ({"max_seconds": 0}, "max_seconds of"),
    ],
)
def test_limits_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        make_app(EndsWithSentence(), **settings)


def test_a_port_that_is_taken_is_told():
    with listen("127.0.0.1", 0) as first:
        with pytest.raises(OSError, match="Cannot listen at 127.0.0.1, port .*in use.* Choose another host or port"):
            listen(*first.getsockname())
        # Small answers in two packets are not held back.
        assert first.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ---- one that takes long


def slow_on_request(completions, **kwargs):
    """Takes longer for "slow" than anybody waits."""
    if "slow" in completions:
        time.sleep(30)
    return [float(len(text)) for text in completions]


def seconds_of_200_others(url):
    """How long the slowest of 200 clients waits, 20 at a time. (httpx2 takes longer to make a client than to ask.)"""
    host, port = url.removeprefix("http://").split(":")

    def ask(number):
        begin = time.perf_counter()
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request("POST", "/score", json.dumps({"prompts": ["a"], "completions": [f"good {number}"]}))
        assert json.load(connection.getresponse())["rewards"][0] is not None
        connection.close()
        return time.perf_counter() - begin

    with ThreadPoolExecutor(20) as clients:
        return max(clients.map(ask, range(200)))


@pytest.mark.parametrize(
    "reward", [Vader(), LearnedReward(tiny_classifier(BERT), BERT)], ids=["Vader", "LearnedReward"]
)
def test_a_text_of_ten_megabytes_keeps_nobody_waiting(reward):
    """A rule's is refused; where the server is told to take it, a model reads the end of it."""
    body = {"prompts": [""], "completions": ["a good film " * 900_000]}
    limits = {"max_text_mb": 1 if isinstance(reward, Vader) else 16}
    with serving(reward, **limits) as url:
        alone = seconds_of_200_others(url)
        answers = []
        long = threading.Thread(target=lambda: answers.append(post(url, body)))
        long.start()
        beside = seconds_of_200_others(url)
        long.join()
    assert beside < 2 + alone  # a machine that is busy with other things is slow without it too
    if isinstance(reward, Vader):
        assert answers[0].status_code == 413
        assert answers[0].json()["detail"].startswith("A text of 10800000 characters is longer than 1 MB (max_text_mb")
    else:
        assert answers[0].json()["rewards"] == pytest.approx(reward([""], body["completions"]), abs=1e-6)


def test_a_request_that_takes_too_long_is_refused_and_the_others_go_on(caplog):
    with serving(slow_on_request, max_seconds=0.5) as url:
        client = RemoteReward(f"{url}/score", backoff=0.001)
        finish = client.start(prompts=["a"], completions=["slow"])
        time.sleep(0.1)
        begin = time.perf_counter()
        assert client(prompts=["a"] * 2, completions=["good", "bad"]) == [4.0, 3.0]
        assert time.perf_counter() - begin < 10
        with pytest.raises(
            RewardError, match=r"422 .*slow_on_request took longer than 0.5 s for 1 rows \(max_seconds"
        ):
            finish()  # and is not asked again: that would keep a second thread
        assert client(prompts=["a"], completions=["good"]) == [4.0]
    assert caplog.text.count("Other requests go on in another thread") == 1
