"""Rewards from a server: doubles that answer as each test says. The real server is in test_server.py."""

import contextlib
import gzip
import json
import logging
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_recipes.rewards import EndsWithSentence, LanguageTool, RewardError, WeightedSum, load_rewards
from rlhf_recipes.rewards.remote import RemoteReward, cut_by_prompt

ROWS = {"prompts": ["a", "b", "c"], "completions": ["one", "three", "seven"], "completion_ids": [[1], [2, 3], [4]]}
QUICK = {"backoff": 0.001, "timeout": 60}  # seconds between attempts


class Double:
    """A server whose every answer is `answer(request)`: a status, a body (JSON unless bytes), and headers if any.

    A request is a dictionary of `path`, `headers`, `body` (bytes) and `gone`, which waits until the client has left.
    """

    def __init__(self, answer):
        self.requests, outer = [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = {"path": self.path, "headers": dict(self.headers), "body": body, "gone": self.gone}
                outer.requests.append(request)
                status, content, *headers = answer(request)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(*headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def gone(self):
                return self.connection.recv(1) == b""

            def handle(self):
                with contextlib.suppress(ConnectionError):  # of a client that did not wait
                    super().handle()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def sent(self, number=0):
        return json.loads(self.requests[number]["body"])


def lengths(request):
    """The reward of these doubles: letters of the completion; null for an empty one."""
    return 200, {"rewards": [len(text) or None for text in json.loads(request["body"])["completions"]]}


def one_after_another(*answers):
    """An answer of a double: each request takes the next."""
    left = iter(answers)
    lock = threading.Lock()

    def answer(request):
        with lock:
            given = next(left)
        return given(request) if callable(given) else given

    return answer


# ---- what goes out and what comes back


def test_rows_go_out_as_json_and_numbers_come_back():
    with Double(lengths) as double:
        reward = RemoteReward(double.url, name="length")
        assert reward(**ROWS, answer=["x", "y", None]) == [3.0, 5.0, 5.0]
    assert len(double.requests) == 1
    assert double.requests[0]["path"] == "/score"
    assert double.requests[0]["headers"]["Content-Type"] == "application/json"
    assert double.sent() == {**ROWS, "columns": {"answer": ["x", "y", None]}}


def test_null_is_does_not_apply():
    with Double(lengths) as double:
        assert RemoteReward(double.url)(prompts=["a", "b"], completions=["", "yes"]) == [None, 3.0]


def test_batches_come_back_in_the_order_of_the_rows():
    texts = ["x" * (number % 7 + 1) for number in range(23)]
    rows = {"prompts": [f"p{number % 12}" for number in range(23)], "completions": texts}  # two of each but the last
    with Double(lengths) as double:
        values = RemoteReward(double.url, batch_size=2, max_concurrent=5)(**rows)
    assert values == [number % 7 + 1 for number in range(23)]
    assert len(double.requests) == 12


def test_rows_of_one_prompt_travel_together():
    assert cut_by_prompt(["a", "b", "a", "c", "b", "d"], 3) == [[0, 2], [1, 4, 3], [5]]
    assert cut_by_prompt(["a"] * 5 + ["b"], 2) == [[0, 1, 2, 3, 4], [5]]
    messages = [[{"role": "user", "content": text}] for text in ("x", "y", "x")]
    assert cut_by_prompt(messages, 1) == [[0, 2], [1]]
    assert cut_by_prompt([], 4) == []


def test_the_value_of_a_row_alone_is_that_in_a_batch():
    with Double(lengths) as double:
        reward = RemoteReward(double.url)
        alone = [reward(**{name: [values[row]] for name, values in ROWS.items()})[0] for row in range(3)]
        assert alone == reward(**ROWS)


def test_no_rows_ask_nobody():
    assert RemoteReward("http://127.0.0.1:1/score")(prompts=[], completions=[], completion_ids=[]) == []


def test_conversations_go_as_messages():
    prompt, completion = [{"role": "user", "content": "2 + 2?"}], [{"role": "assistant", "content": "4 😀 四"}]
    with Double(lambda request: (200, {"rewards": [1]})) as double:
        assert RemoteReward(double.url)(prompts=[prompt], completions=[completion]) == [1.0]
    assert double.sent() == {"prompts": [prompt], "completions": [completion], "columns": {}}


def test_bad_input_is_sent_as_it_is():
    texts = ["", " ", "?!", "word " * 10_000, "мир 世界 🙂 \ud800", None]
    with Double(lambda request: (200, {"rewards": [None] * 6})) as double:
        RemoteReward(double.url)(prompts=list("abcdef"), completions=texts, reference=texts)
    assert double.sent()["completions"] == double.sent()["columns"]["reference"] == texts


def test_ids_stay_here_if_they_are_not_wanted():
    with Double(lengths) as double:
        RemoteReward(double.url, send_ids=False)(**ROWS)
    assert "completion_ids" not in double.sent()


# ---- columns


def test_all_columns_go_that_json_can_hold_and_the_others_are_named_once(caplog):
    columns = {
        **{"stars": [1, 2.5, None], "facts": [{"a": [1]}, {}, None], "image": [b"x", b"y", b"z"]},
        **{"when": [object()] * 3, "share": [0.5, float("nan"), 1.0], "trainer_state": object(), "log_metric": print},
    }
    with Double(lengths) as double:
        reward = RemoteReward(double.url, name="picky")
        reward(**ROWS, **columns)
        reward(**ROWS, **columns)
    assert double.sent()["columns"] == {"stars": [1, 2.5, None], "facts": [{"a": [1]}, {}, None]}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "Reward 'picky' does not send image, share, when, which JSON cannot hold. This is said once."


def test_columns_may_be_chosen():
    with Double(lengths) as double:
        RemoteReward(double.url, columns=["answer"])(**ROWS, answer=[1, 2, 3], secret=["x", "y", "z"])
        RemoteReward(double.url, columns=[])(**ROWS, answer=[1, 2, 3])
    assert [double.sent(number)["columns"] for number in (0, 1)] == [{"answer": [1, 2, 3]}, {}]


def test_a_column_that_is_not_there_or_not_json_is_named():
    reward = RemoteReward("http://127.0.0.1:1/score", columns=["answer"])
    with pytest.raises(ValueError, match="to send the column 'answer', but the dataset has 'question', 'stars'"):
        reward(**ROWS, question=[1, 2, 3], stars=[1, 2, 3])
    with pytest.raises(ValueError, match="column 'answer', but it is no JSON: .*bytes.* Take it out of columns"):
        reward(**ROWS, answer=[b"1", b"2", b"3"])


def test_a_prompt_with_an_image_is_refused_here():
    prompts = [[{"role": "user", "content": [{"type": "image", "image": object()}]}]]
    with pytest.raises(ValueError, match="must be texts or messages of text"):
        RemoteReward("http://127.0.0.1:1/score")(prompts=prompts, completions=["x"])


# ---- waiting


def test_start_sends_at_once_and_waits_later():
    arrived, may_answer = threading.Event(), threading.Event()

    def answer(request):
        arrived.set()
        may_answer.wait(60)
        return lengths(request)

    with Double(answer) as double:
        finish = RemoteReward(double.url).start(**ROWS)
        assert arrived.wait(60)  # while the caller goes on
        may_answer.set()
        assert finish() == [3.0, 5.0, 5.0]


def test_as_many_requests_are_under_way_as_allowed():
    together, lock, most, now = threading.Barrier(3), threading.Lock(), 0, 0

    def answer(request):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        together.wait(60)  # nobody is answered before there are three
        time.sleep(0.05)  # for more to come in, if they can
        with lock:
            now -= 1
        return lengths(request)

    rows = {"prompts": list("abcdef"), "completions": list("uvwxyz")}
    with Double(answer) as double:
        assert RemoteReward(double.url, batch_size=1, max_concurrent=3)(**rows) == [1.0] * 6
    assert most == 3


def functions_at_work(thread):
    """The names of the functions that a thread is in, the innermost first."""
    frame, names = sys._current_frames()[thread.ident], []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def test_an_interrupted_wait_cancels_the_requests():
    left = threading.Event()

    def answer(request):
        while (names := functions_at_work(threading.main_thread()))[0] != "wait" or "wait_for" not in names:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, while the main thread waits
        if request["gone"]():
            left.set()
        return lengths(request)

    with Double(answer) as double:
        with pytest.raises(KeyboardInterrupt):
            RemoteReward(double.url)(**ROWS)
        assert left.wait(60)


# ---- failures that may pass


def test_a_server_that_is_busy_is_asked_again(caplog):
    busy = one_after_another((503, {"detail": "loading"}), (429, b""), (500, b"<html>"), lengths)
    with Double(busy) as double:
        assert RemoteReward(double.url, name="judge", **QUICK)(**ROWS) == [3.0, 5.0, 5.0]
    assert [double.sent(number) for number in range(4)] == [double.sent()] * 4
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert f"Reward 'judge': {double.url}, it answered 503 Service Unavailable: loading. Attempt 2 of 5" in told[0]


def test_a_connection_that_breaks_is_tried_again():
    def broken(request):
        raise ConnectionError  # the connection closes without an answer

    with Double(one_after_another(broken, lengths)) as double:
        assert RemoteReward(double.url, **QUICK)(**ROWS) == [3.0, 5.0, 5.0]


def test_pauses_double_and_are_shortened_at_random_and_retry_after_is_respected(monkeypatch):
    paused = []

    async def sleep(seconds):
        paused.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    busy = (503, {})
    later = (429, {}, {"Retry-After": "7"})
    at_a_time = (503, {}, {"Retry-After": formatdate(time.time() + 40, usegmt=True)})
    before = random.getstate()
    with Double(one_after_another(busy, busy, busy, later, at_a_time, lengths)) as double:
        RemoteReward(double.url, retries=5, backoff=0.5)(**ROWS)
    for seconds, full in zip(paused[:3], (0.5, 1.0, 2.0), strict=True):
        assert full / 2 <= seconds <= full
    assert paused[3] == 7.0
    assert 30 < paused[4] <= 40
    assert random.getstate() == before  # a run must be able to go on exactly


def test_a_server_that_asks_for_too_long_a_pause_has_failed():
    later = {"Retry-After": "3600"}
    with Double(lambda request: (429, {}, later)) as double, pytest.raises(RewardError, match="asks to wait 3600 s. "):
        RemoteReward(double.url)(**ROWS)
    assert len(double.requests) == 1


def test_a_server_that_stays_busy_is_told_with_the_number_of_attempts():
    said = r"it answered 502 Bad Gateway: proxy \(attempt 3 of 3\). Look into the server's log."
    with Double(lambda request: (502, b"proxy")) as double, pytest.raises(RewardError, match=said):
        RemoteReward(double.url, retries=2, **QUICK)(**ROWS)
    assert len(double.requests) == 3


def test_a_server_that_is_down():
    with Double(lengths) as double:
        pass
    with pytest.raises(RewardError) as failed:
        RemoteReward(double.url, name="judge", retries=1, **QUICK)(**ROWS)
    for words in (f"Reward 'judge' got no values from {double.url}: it cannot be reached", "(attempt 2 of 2)",
                  "Check that the server runs"):  # fmt: skip
        assert words in str(failed.value)


def test_a_server_that_is_slow():
    may_answer = threading.Event()

    def answer(request):
        may_answer.wait(60)
        return lengths(request)

    with Double(answer) as double:
        with pytest.raises(
            RewardError, match=r"did not answer within 0.05 s \(attempt 2 of 2\). Give it a longer timeo"
        ):
            RemoteReward(double.url, retries=1, backoff=0.001, timeout=0.05)(**ROWS)
        may_answer.set()


# ---- failures that stay


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (307, "Give the url that it redirects to."),
        (400, "Mend the rows"),
        (404, "/score of recipes/serve_reward.py"),
        (413, "batch_size"),
        (418, "Look into its log."),
        (422, "columns: Field required. Mend the rows, the columns or the server's rewards."),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(status, said):
    refusal = {"detail": "columns: Field required"}
    with Double(lambda request: (status, refusal)) as double, pytest.raises(RewardError) as failed:
        RemoteReward(f"{double.url}?key=hidden", name="judge", **QUICK)(**ROWS)
    assert len(double.requests) == 1
    assert str(failed.value).startswith(f"Reward 'judge' got no values from {double.url}: it answered {status} ")
    assert said in str(failed.value)
    assert "hidden" not in str(failed.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>Welcome</html>", "something that is no JSON .*<html>Welcome</html>"),
        (b"", "something that is no JSON"),
        (b"\xff\xfe\xfa", "something that is no JSON"),
        (b"[" * 100_000, "something that is no JSON"),
        ([1, 2, 3], r"\[1, 2, 3\], which has no list called rewards"),
        ({"scores": [1, 2, 3]}, "no list called rewards"),
        ({"rewards": 1}, "no list called rewards"),
        ({"rewards": [1, 2]}, "2 rewards for 3 rows"),
        ({"rewards": [1, 2, 3, 4]}, "4 rewards for 3 rows"),
        ({"rewards": []}, "0 rewards for 3 rows"),
        ({"rewards": [1, "0.5", 2]}, '"0.5" for row 1; it must be a finite number or null'),
        ({"rewards": [1, 2, True]}, "true for row 2"),
        ({"rewards": [[1], 2, 3]}, r"\[1\] for row 0"),
        (b'{"rewards": [1, NaN, 2]}', "NaN is no number of JSON"),
        (b'{"rewards": [1, -Infinity, 2]}', "-Infinity is no number of JSON"),
        (b'{"rewards": [1, 1e999, 2]}', "for row 1; it must be a finite number"),
        ({"rewards": [1, 10**400, 2]}, "for row 1; it must be a finite number"),
    ],
)
def test_rubbish_is_refused_and_never_becomes_a_number(answer, said):
    with Double(lambda request: (200, answer)) as double, pytest.raises(RewardError, match=said):
        RemoteReward(double.url, **QUICK)(**ROWS)
    assert len(double.requests) == 1


def test_the_first_batch_that_fails_ends_the_others():
    def answer(request):
        if b"bad" in request["body"]:
            return 404, {}
        assert request["gone"]()  # without the failure of the other, this would wait forever
        return lengths(request)

    with Double(answer) as double, pytest.raises(RewardError, match="404"):
        RemoteReward(double.url, batch_size=1)(prompts=["a", "b"], completions=["good", "bad"])


# ---- the token


def test_the_token_comes_from_the_environment_when_it_is_called_and_is_kept_nowhere(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    with Double(lengths) as double:
        reward = RemoteReward(double.url, token_env="MY_TOKEN")
        reward(**ROWS)
        monkeypatch.setenv("MY_TOKEN", " n3wer\n")
        pickle.loads(pickle.dumps(reward))(**ROWS)
        monkeypatch.delenv("MY_TOKEN")
        reward(**ROWS)
        RemoteReward(double.url, token_env=None)(**ROWS)
    sent = [request["headers"].get("Authorization") for request in double.requests]
    assert sent == ["Bearer s3cret", "Bearer n3wer", None, None]
    assert b"s3cret" not in pickle.dumps(reward)
    assert "s3cret" not in f"{reward!r} {vars(reward)}"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_named_by_its_variable_and_not_shown(status, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    with Double(lambda request: (status, {"detail": f"no {request['headers'].get('Authorization')}"})) as double:
        with pytest.raises(RewardError, match=r"no Bearer \*\*\*. The token .* MY_TOKEN, which is set.") as refused:
            RemoteReward(double.url, token_env="MY_TOKEN")(**ROWS)
        monkeypatch.delenv("MY_TOKEN")
        with pytest.raises(RewardError, match="from the environment variable MY_TOKEN, which is not set"):
            RemoteReward(double.url, token_env="MY_TOKEN")(**ROWS)
        with pytest.raises(RewardError, match="No token was sent"):
            RemoteReward(double.url, token_env=None)(**ROWS)
    assert len(double.requests) == 3
    assert "s3cret" not in "".join(traceback.format_exception(refused.value)) + caplog.text


@pytest.mark.parametrize("answer", [b"<html>Bearer s3cret", {"rewards": "Bearer s3cret"}, {"rewards": ["s3cret"] * 3}])
def test_a_server_that_says_what_it_was_sent_does_not_bring_the_token_into_a_log(answer, monkeypatch):
    monkeypatch.setenv("REWARD_API_TOKEN", "s3cret")
    with Double(lambda request: (200, answer)) as double, pytest.raises(RewardError, match=r"\*\*\*") as failed:
        RemoteReward(double.url)(**ROWS)
    assert "s3cret" not in str(failed.value)


def test_a_token_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("REWARD_API_TOKEN", "s3\ncret")
    with pytest.raises(RewardError, match="REWARD_API_TOKEN, which holds characters") as failed:
        RemoteReward("http://127.0.0.1:1")(**ROWS)
    assert "cret" not in str(failed.value)


# ---- settings


def test_it_is_a_reward_like_any_other():
    with Double(lengths) as double:
        reward = RemoteReward(double.url, name="length", batch_size=2, columns=["stars"])
        again = pickle.loads(pickle.dumps(reward))
        assert (again, again.__name__) == (reward, "length")
        rows = {**ROWS, "stars": [1, 2, 3]}
        assert again(**rows) == [3.0, 5.0, 5.0]
        total = WeightedSum([reward, EndsWithSentence()], weights=[2.0, 1.0])
        assert total.parts(**rows) == {"length": [3.0, 5.0, 5.0], "EndsWithSentence": [0.0, 0.0, 0.0]}
        assert total(**rows) == [6.0, 10.0, 10.0]
        spec = {"func": "rlhf_recipes.rewards.remote.RemoteReward", "name": "far", "args": {"url": double.url}}
        assert load_rewards([spec]).parts(**ROWS) == {"far": [3.0, 5.0, 5.0]}
    assert RemoteReward("http://localhost").__name__ == "RemoteReward"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "url of RemoteReward is 'localhost:8000'; give one such as"),
        ({"url": "ftp://localhost"}, "give one such as"),
        ({"url": "http://"}, "give one such as"),
        ({"url": "http://localhost:99999"}, "give one such as"),
        ({"batch_size": 0}, "batch_size of RemoteReward is 0; it must be 1 or more"),
        ({"max_concurrent": 0}, "max_concurrent of RemoteReward is 0; it must be 1 or more"),
        ({"retries": -1}, "retries of RemoteReward is -1; it must be 0 or more"),
        ({"backoff": -0.5}, "backoff of RemoteReward is -0.5; it must be 0 or more"),
        ({"timeout": 0}, "timeout of RemoteReward is 0; it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout of RemoteReward is nan"),
        ({"columns": "answer"}, "columns of RemoteReward is 'answer'; give a list"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RemoteReward(**{"url": "http://localhost", **settings})


def test_a_password_in_the_url_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="holds a user or a password") as refused:
        RemoteReward("https://me:s3cret@localhost/score")
    assert "s3cret" not in str(refused.value)


# ---- the way, and the size of what comes back


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that refuses whatever it is asked, and that the environment names for every address."""
    with Double(lambda request: (502, b"no such host")) as double:
        address = double.url.removesuffix("/score")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, address.replace("http://", "http://ann:s3cret@"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield double, address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_is_asked_directly(proxy, host):
    with Double(lengths) as double:
        assert RemoteReward(double.url.replace("127.0.0.1", host))(**ROWS) == [3.0, 5.0, 5.0]
        assert LanguageTool(double.url).start([""], [""])() == [None]
    assert proxy[0].requests == []


def test_another_machine_is_asked_through_the_proxy_which_is_named(proxy, caplog):
    double, address = proxy
    reward = RemoteReward("http://scores.example/score", retries=1, backoff=0.001)
    with pytest.raises(RewardError) as caught:
        reward(**ROWS)
    way = f"http://scores.example/score through the proxy {address} that the environment names"
    assert f"got no values from {way}: it answered 502" in str(caught.value)
    assert way in caplog.text
    assert "s3cret" not in str(caught.value) + caplog.text
    assert len(double.requests) == 2


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("compressed", [False, True])
def test_no_more_of_an_answer_is_read_than_its_limit(status, compressed):
    body = json.dumps({"rewards": [1.0, 2.0, 3.0], "detail": "x" * 3_000_000}).encode()
    headers = {"Content-Encoding": "gzip"} if compressed else {}
    content = gzip.compress(body) if compressed else body
    with Double(lambda request: (status, content, headers)) as double:
        with pytest.raises(RewardError, match=r"its answer is larger than 1 MB\. Check .* or raise max_answer_mb"):
            RemoteReward(double.url, max_answer_mb=1, retries=0)(**ROWS)
        if status == 200:
            assert RemoteReward(double.url)(**ROWS) == [1.0, 2.0, 3.0]


NO_VALUES = {
    "an error with values": (500, {"rewards": [0.75, -0.25, 0.0]}),
    "a refusal with values": (422, {"rewards": [0.75, -0.25, 0.0]}),
    "a redirection": (302, {"rewards": [0.0, 0.0, 0.0]}, {"Location": "/elsewhere"}),
    "an error that is a success": (200, {"error": "out of memory"}),
    "too few": (200, {"rewards": [0.75]}),
    "too many": (200, {"rewards": [0.75, 0.0, 0.0, 0.0]}),
    "none at all": (200, {"rewards": []}),
    "a text": (200, {"rewards": [0.0, "0.0", 0.0]}),
    "a truth value": (200, {"rewards": [0.0, False, 0.0]}),
    "NaN": (200, b'{"rewards": [0.0, NaN, 0.0]}'),
    "a number that no float holds": (200, b'{"rewards": [0.0, 1' + b"0" * 400 + b", 0.0]}"),
    "a number that overflows": (200, b'{"rewards": [0.0, 1e400, 0.0]}'),
    "another shape": (200, [0.0, 0.0, 0.0]),
    "half of it": (200, b'{"rewards": [0.0, 0.0'),
    "nothing": (200, b""),
    "a page": (200, b"<html>0</html>"),
}


@pytest.mark.parametrize("answer", NO_VALUES.values(), ids=NO_VALUES)
def test_whatever_goes_wrong_is_an_error_and_never_a_0(answer):
    with Double(lambda request: answer) as double:
        reward = RemoteReward(double.url, retries=1, backoff=0.001)
        for held in (reward, WeightedSum([reward, EndsWithSentence()])):
            with pytest.raises(RewardError, match="Reward 'RemoteReward' got no values from http") as caught:
                held(**ROWS)
            assert ".." not in str(caught.value).replace("...", "")


def test_rows_without_a_value_are_no_0_either():
    with Double(lambda request: (200, {"rewards": [None] * 3})) as double:
        reward = RemoteReward(double.url)
        assert reward(**ROWS) == [None] * 3
        with pytest.raises(RewardError, match="Row 0 has no reward"):
            WeightedSum([reward])(**ROWS)
