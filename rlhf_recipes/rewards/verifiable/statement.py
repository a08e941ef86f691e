"""Where a completion states its answer, and whether it stands by it.

A reward for right answers is only as good as this reading: a policy soon finds out whether "72 or 73" pays, "not 72",
or a right number in the middle of its thoughts. What is read is the conclusion: thoughts, code and questions are no
statements; what is denied is not stated; of several answers in a row none is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Where = Literal["anywhere", "tag", "boxed", "hashes", "last"]
WHERE = ("anywhere", "tag", "boxed", "hashes", "last")
THOUGHTS = r"think|thinking|thought|reasoning"
THOUGHT = re.compile(rf"<({THOUGHTS})>(?:(?!<(?:{THOUGHTS})>).)*?</\1>", re.DOTALL | re.IGNORECASE)
OPENED, CLOSED = (re.compile(rf"<{slash}(?:{THOUGHTS})>", re.IGNORECASE) for slash in ("", "/"))
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)

# Emphasis of Markdown, as in **72**, but not the stars of 18*4*2 or 2**3; and the notes of a calculator, <<18*4=72>>.
EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3}|__)(?=\S)([^*\n]+?)(?<=\S)\1(?![\w(*])")
NOTE = re.compile(r"<<[^<>\n]*>>|`")
BOX = re.compile(r"\\f?box(?:ed)?\s*\{|\\boxed\s*(?P<bare>[^\s{$]+)|\\[{}\\]|[{}]")
SENTENCE = re.compile(r"(?:[^.!?。！？\n]|[.](?=\w)|!(?=[$\\^×÷+*/=-]))+(?:[.!?。！？]+|\n|\Z)")

# What introduces an answer. In every language: the word, then what may stand between it and the answer.
COPULA = r"(?:\b(?:is|are|was|be|equals?|becomes?)\b(?:\s+that\b)?|[:：=])"
MARKER = re.compile(
    rf"\b(?:answer|solution|result)s?\b[^.?!\n:：=]{{0,60}}?{COPULA}"
    r"|^[ \t]*(?:A|Ans|Q\.E\.D)[ \t]*[:：]"
    r"|答案(?:应该|應該)?(?:是|为|為|：|:)|答えは|答え[:：]|정답은|답은|답[:：]"
    r"|\b(?:antwort|lösung|ergebnis)\b[^.?!\n:]{0,40}?(?:\b(?:ist|lautet|beträgt)\b|:)"
    r"|\b(?:réponse|résultat|solution)\b[^.?!\n:]{0,40}?(?:\best\b|:)"
    r"|\b(?:respuesta|resultado|solución|resposta|risposta|risultato)\b[^.?!\n:]{0,40}?(?:\b(?:es|é|è)\b|:)"
    r"|\b(?:ответ|результат)\b[ \t]*(?:[:—–-]|равен|будет)?|\b(?:الجواب|الإجابة|الناتج)\b(?:\s+هو|\s+هي|:)?"
    r"|\bउत्तर\b[ \t]*(?:है|:)?",
    re.IGNORECASE | re.MULTILINE,
)
RETRACTION = re.compile(
    r"(?:(?<=[.!?。！？\n])|\A)\s*(?:wait|hmm+|hold on|no\b,?|nope|actually|correction|sorry|oops|scratch that|"
    r"on second thought|let me (?:re-?|double))",
    re.IGNORECASE,
)
CONFIRMATION = re.compile(r"\b(?:yes|correct|right|confirmed|indeed|checks out)\b", re.IGNORECASE)
TAG_QUESTION = re.compile(
    r"\s*[,;，–—]\s*(?:right|correct|true|ok(?:ay)?|yes|yeah|agreed?|huh|eh|(?:isn['’]t it|isn['’]t that|is it not)"
    r"(?: right| so)?|don['’]t you (?:think|agree)|oder|nicht wahr|n['’]est-ce pas|verdad|vero|не так ли|верно"
    r"|对吧|对吗|是吧)\s*[?？]",
    re.IGNORECASE,
)
ASKING = re.compile(
    r"\W*(?:is|are|was|were|am|do|does|did|can|could|will|would|should|shall|may|has|have|what|which|who|how|why)\b",
    re.IGNORECASE,
)
EXPLANATION = re.compile(
    r"[,;(]?\s*\b(?:because|since|as|which|where|given|due|by(?!\s+[$\d])|when|if|so|using|weil|denn|parce|car|porque|"
    r"ya que|perché|потому|так как)\b|因为|因為|なぜなら",
    re.IGNORECASE,
)
OR = r"(?:and/or|or|and|oder|und|ou|et|o|y|e|или|и|和|或|또는|أو|و|या)"
SEPARATORS = re.compile(rf"(?:[\s,;.&$/\\|、，；]|{OR}\b)*", re.IGNORECASE)
ALTERNATIVES = re.compile(
    r"\b(?:or|oder|ou|или|either|maybe also)\b|或|또는|もしくは|または|\sأو\s|\\text\{\s*(?:or|and)\s*\}",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"(?P<not>(?:\bnot\b(?! (?:only|just))|n['’]t\b)(?: equal(?: to)?\b)?|\b(?:any|every)thing but\b"
    r"|\bcannot\b|\bnever\b|\bnor\b|\bneither\b|\brul(?:e|ed|ing) out\b"
    r"|\b(?:rather|other|different) than\b|\binstead of\b|\bunlike\b|\bexcept\b|\bexclud\w+|\bdifferent from\b"
    r"|\\neq?\b|≠|!=|\bnicht\b|\bkein\w*|\bn['’]est pas\b|\bpas\b|\bno (?:es|son|fue|puede)\b|\bnon (?:è|sono)\b"
    r"|\bnão\b|\bне\b|不是|不等于|不為|不为|並非|并非|ليس|नहीं)",
    re.IGNORECASE,
)
HARMLESS = re.compile(r"\b(?:no doubt|without (?:a )?doubt|why not|whether or not|not only|not just)\b", re.IGNORECASE)

# A denial of a whole sentence, as in "I don't think that it is 72".
OF_ALL = re.compile(
    r"(?:n['’]t|\bnot)\s+(?:\w+\s+)?(?:think|believe|say|claim|agree|true|correct|right|the case)\b|"
    r"\b(?:wrong|false|incorrect|doubt|impossible) (?:that|to)\b",
    re.IGNORECASE,
)
ASSERTION = re.compile(
    r"[=,;:]|\b(?:is|are|was|were|equals?|gives?|becomes?|makes?|but|rather|instead|so|thus|hence|therefore|get|gets|"
    r"sondern|ist|mais|sino|es|ma|а|но)\b|而是|但",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    r"\s*(?:[^\W\d_]+\s+){0,2}?(?:"
    r"(?:(?:is|are|was|were|be|being|seems?|looks?)(?:n['’]t|\s+(?:\w+ly\s+)?(?:not|never|wrong|false|incorrect|"
    r"impossible|excluded|ruled out|invalid|out of|too)\b)|cannot\b|can['’]?t\b|won['’]t\b|doesn['’]t\b|does not\b|"
    r"didn['’]t\b|did not\b|can be (?:ruled out|excluded))"
    r"|नहीं|ist (?:nicht|falsch)|n['’]est pas|est (?:faux|fausse)|no es|non è|não é|неверно|不是|不对|不對|是错|"
    r"では(?:な|あり)|じゃ(?:な|あり)|(?:가|이|은|는)\s*아니)",
    re.IGNORECASE,
)
NEAR = 300  # characters around an answer in which it can be denied


@dataclass(frozen=True)
class Statement:
    """What a completion gives as its answer.

    Attributes:
        text (`str`): The words of it.
        marked (`bool`): Whether a mark (box, tag, hashes, "the answer is") says so; else it is all of the prose.
        enclosed (`bool`): Whether it stands in a box, a tag or behind hashes, where no sentence ends in "72!".
    """

    text: str
    marked: bool
    enclosed: bool = False


@dataclass(frozen=True)
class Span:
    """A marked part of a text: where the mark begins and ends, and what stands in it."""

    start: int
    end: int
    inside: str


def stated(text: str, where: Where = "anywhere") -> Statement | None:
    """What a completion states as its answer; `None` if nothing, several things, or something that it denies.

    Args:
        text (`str`): The completion.
        where (`str`, *optional*, defaults to `"anywhere"`): As in [`NumberAnswer`].
    """
    text = without_thoughts(text)
    if where == "last":
        return Statement(prose(text), marked=False)
    for kind, find in (("tag", tags), ("boxed", boxes), ("hashes", hashes)):
        if where not in ("anywhere", kind):
            continue
        spans, cut_off = find(text)
        if spans:
            return _one_of(spans, text)
        if cut_off or where == kind:
            return None
    return _said(prose(text))


def without_thoughts(text: str) -> str:
    """What a completion says once it has thought: a thought that is never closed leaves nothing."""
    text = THOUGHT.sub("\n", text)
    text = CLOSED.split(text)[-1]  # opened by the prompt
    return OPENED.split(text)[0]


def prose(text: str) -> str:
    """A text without code, emphasis, a calculator's notes, empty lines, and a "right?" at the end of a sentence."""
    text = EMPHASIS.sub(r"\2", NOTE.sub("", CODE.sub("\n", text)))
    return "\n".join(filter(str.strip, TAG_QUESTION.sub(_without_tag, text).splitlines()))


def _without_tag(question: re.Match[str]) -> str:
    sentence = re.split(r"[.!?。！？]\s|\n", question.string[: question.start()][-NEAR:])[-1]
    return question.group() if ASKING.match(sentence) else "."


def sentences(text: str) -> list[str]:
    """The sentences of a text that are no questions, in order."""
    found = (match.group().strip() for match in SENTENCE.finditer(text))
    return [sentence for sentence in found if sentence and sentence[-1] not in "?？"]


def tags(text: str) -> tuple[list[Span], bool]:
    """Each `<answer>...</answer>`, and whether the last one is cut off."""
    spans, opened = [], None
    for match in re.finditer(r"<(/?)answer>", text):
        if not match[1]:
            opened = match
        elif opened is not None:
            spans.append(Span(opened.start(), match.end(), text[opened.end() : match.start()]))
            opened = None
    return spans, opened is not None


def boxes(text: str) -> tuple[list[Span], bool]:
    r"""Each `\boxed{...}` whose braces are closed, the outermost ones, and whether the last one is cut off."""
    spans: list[Span] = []
    opened: list[re.Match[str] | None] = []  # of each brace that is open, the box that it belongs to
    boxes_open = 0
    for match in BOX.finditer(text):
        token = match.group()
        if match["bare"]:  # \boxed 5
            spans += [] if boxes_open else [Span(match.start(), match.end(), match["bare"])]
        elif "box" in token:
            opened.append(match)
            boxes_open += 1
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            box = opened.pop()
            boxes_open -= box is not None
            if box is not None and not boxes_open:
                spans.append(Span(box.start(), match.end(), text[box.end() : match.start()]))
    return spans, boxes_open > 0


def hashes(text: str) -> tuple[list[Span], bool]:
    """What follows each `####`: the rest of its line, or the next line where that is empty."""
    found = re.finditer(r"####+[ \t]*(?:\n\s*)?([^\n]*)", text)
    return [Span(match.start(), match.end(), match[1]) for match in found if match[1].strip()], False


def is_denied(before: str, after: str) -> bool:
    """Whether what stands between these two parts of a sentence is denied in it.

    >>> is_denied("It is certainly not ", ", though."), is_denied("", " is wrong."), is_denied("It's not 71 but ", "")
    (True, True, False)
    """
    before, after = HARMLESS.sub(" ", before[-NEAR:]), after[:NEAR]
    of_all = list(OF_ALL.finditer(before))
    if of_all and not re.search(r"[,;:=]|\bbut\b", before[of_all[-1].end() :]):
        return True
    denials = list(DENIAL.finditer(before))
    if denials and not ASSERTION.search(before[denials[-1].end() :]):
        return True
    return DENIED_AFTER.match(after) is not None


def is_choice(text: str) -> bool:
    """Whether a text offers one thing or another."""
    return ALTERNATIVES.search(text) is not None


def is_alternative(sentence: str) -> bool:
    """Whether a sentence goes on with an alternative, as in "72. Or 73."."""
    return re.match(r"(?:or|oder|ou|или|或)\b", sentence, re.IGNORECASE) is not None


def without_explanation(text: str) -> str:
    """A statement without the reason that it gives."""
    cut = next((match.start() for match in EXPLANATION.finditer(text) if text[: match.start()].strip()), len(text))
    return text[:cut]


def _one_of(spans: list[Span], text: str) -> Statement | None:
    """The last of several marked parts; none where it stands in a row with others that say something else."""
    last = spans[-1]
    for former, following in _pairs_from_the_end(spans):
        if not SEPARATORS.fullmatch(text[former.end : following.start]):
            break
        if re.sub(r"\s", "", former.inside) != re.sub(r"\s", "", last.inside):
            return None
    before = re.split(r"[.!?。！？]\s|\n", text[: last.start])[-1]
    after = re.split(r"[.!?。！？]\s|\n", text[last.end :])[0]
    return None if is_denied(before, after) else Statement(prose(last.inside), marked=True, enclosed=True)


def _pairs_from_the_end(spans: list[Span]) -> Iterator[tuple[Span, Span]]:
    return ((spans[i - 1], spans[i]) for i in range(len(spans) - 1, 0, -1))


def _said(text: str) -> Statement | None:
    """What prose states: what follows the last "the answer is", unless it is taken back, or else all of it."""
    markers = [match for match in MARKER.finditer(text) if text[match.end() :].strip()]
    retracted = [match for match in RETRACTION.finditer(text) if text[: match.start()].strip()]
    if retracted and (not markers or retracted[-1].start() >= markers[-1].end()):
        rest = text[retracted[-1].start() :].strip()
        if not CONFIRMATION.search(rest) or DENIAL.search(rest) or re.search(r"\d", rest):
            return Statement(rest, marked=False)
    if not markers:
        return Statement(text, marked=False)
    sentence_start = max(text.rfind(end, 0, markers[-1].start()) for end in (". ", "\n", "! ", "? "))
    rest = text[markers[-1].end() :].lstrip(" \t\n:：")
    told = SENTENCE.match(rest)
    statement = told.group() if told else rest
    denied = is_denied(text[sentence_start + 1 : markers[-1].end()], "") or _is_question(statement)
    return None if denied else Statement(statement.strip(), marked=True)


def _is_question(text: str) -> bool:
    return text.rstrip().endswith(("?", "？"))
