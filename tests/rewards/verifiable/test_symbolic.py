"""MathAnswer; math-verify runs in a process, which all tests of this file share."""

import asyncio
import logging
import time

import pytest

from rlhf_recipes.rewards import (
    Clip,
    Gate,
    MathAnswer,
    NumberAnswer,
    RewardError,
    WeightedSum,
    compute_rewards,
    load_rewards,
)
from rlhf_recipes.rewards.verifiable.prover import prover
from tests.rewards.test_server import post, serving

TOWER = r"\boxed{9^{9^{9^{9}}}}"

# By reference: completions that give it, and completions that do not.
ANSWERS = {
    r"2\sqrt{3}": (
        [
            *(
                r"2\sqrt{3}",
                r"$2\sqrt{3}$",
                r"\boxed{2\sqrt3}",
                r"\boxed{\sqrt{12}}",
                r"The answer is $2\sqrt{3}$.",
                "2√3",
            ),
            *(
                "2*sqrt(3)",
                "The answer is 2*sqrt(3).",
                r"The side length is $2\sqrt{3}$ cm.",
                r"\boxed{x = 2\sqrt{3}}",
            ),
            *(
                r"\boxed{2 \sqrt{3} \text{ cm}}",
                r"So $x = 2\sqrt{3}$.",
                r"<answer>2\sqrt{3}</answer>",
                r"#### $2\sqrt{3}$",
            ),
            *(r"\boxed{\dfrac{6}{\sqrt{3}}}", r"\boxed{3.4641016}", r"Therefore the area is 2\sqrt{3}."),
        ],
        [
            *(
                "3",
                "2",
                r"\boxed{3}",
                r"\sqrt{3}",
                r"\boxed{2\sqrt{5}}",
                r"\boxed{-2\sqrt{3}}",
                r"\boxed{2\sqrt{3}, 5}",
                "",
            ),
            *(
                r"\boxed{2\sqrt{3} \text{ or } 5}",
                r"The answer is not $2\sqrt{3}$.",
                r"It isn't $2\sqrt{3}$.",
                "I don't know",
            ),
            *(
                r"\boxed{2\sqrt{3}",
                r"\boxed{3.46}",
                r"the answer is $\sqrt 3$ or $2\sqrt{3}$",
                r"$2\sqrt{3}$ is wrong.",
            ),
            *(r"\boxed{2\sqrt{3}} \boxed{3\sqrt{3}}", r"<think>2\sqrt{3}</think>"),
        ],
    ),
    "(3,2)": (
        ["(3,2)", "(3, 2)", r"$(3,2)$", "The answer is (3, 2).", r"\boxed{\left(3,2\right)}", r"\boxed{(x,y)=(3,2)}"],
        [
            "(5,2)",
            "(2,3)",
            r"\boxed{2}",
            r"\{3,2\}",
            r"\boxed{[3,2]}",
            r"\boxed{(3,2,1)}",
            r"\boxed{(3,2]}",
            "not (3,2)",
        ],
    ),
    "(1,2]": ([r"\boxed{(1,2]}", "(1, 2]"], [r"\boxed{(0,2]}", r"\boxed{(1,2)}", r"\boxed{[1,2]}", "2"]),
    r"\{1,2,3\}": (
        [r"\boxed{\{3,2,1\}}", r"\{1, 2, 3\}", r"\boxed{1,2,3}"],
        [r"\boxed{\{4,5,3\}}", r"\{1,2\}", r"\boxed{(1,2,3)}", "3"],
    ),
    r"(-\infty, 1) \cup (2, \infty)": (
        [r"\boxed{(-\infty,1)\cup(2,\infty)}", "(2,∞) ∪ (-∞,1)"],
        ["(1,2)", "2", r"\boxed{(-\infty,1]\cup(2,\infty)}", r"\boxed{(-\infty,2)\cup(2,\infty)}"],
    ),
    "x^2-1": (
        [r"\boxed{x^2-1}", "(x-1)(x+1)", "The answer is $x^{2} - 1$.", "x²-1", "x**2-1", r"\boxed{f(x)=x^2-1}"],
        ["x^2+1", r"\boxed{x^2}", "1", "-1", r"\boxed{y^2-1}", r"\boxed{x^2-1=0}"],
    ),
    "3x+2y=7": (
        [r"\boxed{3x+2y=7}", r"\boxed{2y = 7-3x}"],
        ["7", r"\boxed{x=7}", r"\boxed{3x+2y=8}", r"\boxed{2x+3y=7}"],
    ),
    "y = -2x": ([r"\boxed{y=-2x}", "The equation is $y=-2x$."], [r"\boxed{y=2x}", "2", r"\boxed{x=-2y}"]),
    r"\begin{pmatrix}1\\2\end{pmatrix}": (
        [r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"$\begin{bmatrix} 1 \\ 2 \end{bmatrix}$"],
        [r"\boxed{\begin{pmatrix}3\\2\end{pmatrix}}", r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}", "2"],
    ),
    "3+4i": ([r"\boxed{4i+3}", "3 + 4i"], [r"\boxed{7+4i}", r"\boxed{3-4i}", "4", "7"]),
    r"2\pi": (["2π", "2 pi", r"\boxed{2 \pi}", "The answer is 2*pi."], [r"\boxed{2}", r"\boxed{\pi}", "2", r"3\pi"]),
    "40_9": ([r"\boxed{40_9}", "40_{9}", "$40_{9}$", r"\boxed{40}"], [r"\boxed{40_8}", "9", r"\boxed{36_9}", "36"]),
    "2^{10}": ([r"\boxed{1024}", r"\boxed{2^{10}}"], ["10", r"\boxed{20}", r"\boxed{10^2}"]),
    "1024": (
        [r"\boxed{2^{10}}", r"\boxed{\sqrt{1048576}}"],
        [r"\boxed{2^{11}}", r"\boxed{2^{10} \text{ or } 2^{11}}"],
    ),
    "12 pi": ([r"$12\pi$", "12 pi"], ["12", r"$12\pi^2$"]),
    r"\text{Evelyn}": (
        ["Evelyn", r"\boxed{\text{Evelyn}}", "The answer is Evelyn."],
        ["Debra", "Evelyn or Debra", "not Evelyn"],
    ),
    r"\text{(C)}": (["The answer is (C).", r"\boxed{C}"], ["The answer is (B).", "(B) or (C)"]),
}


@pytest.mark.parametrize("reference", ANSWERS)
def test_what_equals_the_reference_pays_and_nothing_else(reference):
    right, wrong = ANSWERS[reference]
    completions = right + wrong
    values = MathAnswer()(completions=completions, answer=[reference] * len(completions))
    assert dict(zip(completions, values, strict=True)) == dict.fromkeys(right, 1.0) | dict.fromkeys(wrong, 0.0)
    number = NumberAnswer()(completions=completions, answer=[reference] * len(completions))
    assert reference == "1024" or number == [None] * len(completions)


def test_wrong_answers_that_share_the_last_number_do_not_pay():
    forms = [
        r"\sqrt{{{}}}", r"{}\pi", "({}, {})", r"\{{{}, {}\}}", "({}, {}]", r"\frac{{\sqrt{{{}}}}}{{{}}}", "{} + {}i",
        "{}x + {}", "y = {}x + {}", r"\begin{{pmatrix}} {} \\ {} \end{{pmatrix}}", r"{}\sqrt{{{}}}",
        r"{}^{{{}}}", "x^2 - {}x + {}",
    ]  # fmt: skip
    rows = []
    for number, form in enumerate(forms):
        places, last = form.count("{}"), 11 + number
        reference = form.format(*range(2, places + 1), last)
        others = [form.format(*range(7, places + 6), last)] if places > 1 else []
        rows += [(reference, rf"\boxed{{{text}}}") for text in (*others, last, f"x = {last}", f"-{last}", f"{last}x")]
        rows += [(reference, said) for said in (f"The answer is {last}.", f"#### {last}", f"so it is {last}")]
    references, completions = zip(*rows, strict=True)
    assert len(rows) > 90
    assert set(NumberAnswer()(completions=completions, answer=references)) == {None}
    assert set(MathAnswer()(completions=completions, answer=references)) == {0.0}


def test_a_reference_that_cannot_be_read_gets_none_and_is_counted(caplog):
    logged = []
    references = [r"x^8 + x^7 + \cdots + 1", r"\frac{1", "3 apples and 2 pears", r"\sqrt{2}", None]
    values = MathAnswer(name="unread")(
        completions=["1"] * 5, answer=references, log_metric=lambda *pair: logged.append(pair)
    )
    assert values == [None, None, None, 0.0, None]
    assert logged == [("unread/unread_references", 3.0)]
    assert "3 of 5 references in the column 'answer' are not mathematics" in caplog.text


def test_a_tower_of_powers_ends_at_the_limit(caplog):
    logged = []
    reward = MathAnswer(timeout=0.5, name="tower")
    begin = time.monotonic()
    values = reward(
        completions=[TOWER, r"\boxed{\sqrt{12}}", r"\boxed{3}"],
        answer=[r"2\sqrt{3}", r"2\sqrt{3}", "9^{9^{9^{9}}}"],
        log_metric=lambda *pair: logged.append(pair),
    )
    assert time.monotonic() - begin < 60  # for ever, without a limit
    assert values == [0.0, 1.0, None]
    assert ("tower/timed_out", 2.0) in logged
    assert "a comparison did not end within 0.5 seconds of processor time" in caplog.text


def test_a_tower_ends_in_compositions_in_threads_and_in_a_server():
    reward = MathAnswer(timeout=0.5)
    clip, gate = Clip(reward, high=0.5), Gate(reward, only_if=MathAnswer(timeout=0.5, name="again"))
    rows = {"prompts": ["?"] * 2, "completions": [TOWER, r"\boxed{4}"], "completion_ids": [[1]] * 2}

    async def in_thread():
        return await asyncio.to_thread(gate, **rows, answer=["4"] * 2)

    assert asyncio.run(in_thread()) == [0.0, 1.0]
    with serving(WeightedSum([clip])) as url:
        assert post(url, rows | {"columns": {"answer": ["4"] * 2}}).json()["rewards"] == [0.0, 0.5]


def test_its_process_is_started_again_after_it_was_killed():
    reward, completions = MathAnswer(), [r"\boxed{\sqrt{4}}"]
    assert reward(completions=completions, answer=["2"]) == [1.0]
    process = prover().worker.process
    process.kill()
    process.wait()
    assert reward(completions=completions, answer=["2"]) == [1.0]
    assert prover().worker.process is not process


def test_a_reference_of_no_kind_is_named_with_its_row():
    with pytest.raises(RewardError, match="'MathAnswer' cannot use the reference in row 1, column 'gold': it is nan"):
        compute_rewards([MathAnswer(column="gold")], ["", ""], ["1", "1"], [[1], [1]], {"gold": ["1", float("nan")]})


def test_from_yaml_and_refused_settings():
    rewards = load_rewards([{"func": "MathAnswer", "args": {"column": "gold", "timeout": 2}}])
    assert rewards.reward_funcs[0] == MathAnswer(column="gold", timeout=2)
    with pytest.raises(ValueError, match="timeout of MathAnswer is 0; it must be a number of seconds above 0"):
        MathAnswer(timeout=0)


def test_it_does_not_log_what_the_library_warns_of(caplog):
    with caplog.at_level(logging.WARNING):
        MathAnswer(name="quiet")(completions=[r"\boxed{\sqrt{9}}"], answer=["3"])
    assert caplog.text == ""
