"""Text for a card is text, and what a reader sees as one sign stays whole."""

import importlib

from rlhf_recipes.report.markdown import markdown_table, plain_line, quoted, rounded, shortened

FAMILY = "👩‍👩‍👧‍👦"  # seven code points, one sign


def test_a_short_text_stays_as_it_is():
    assert shortened("Fine.", 5) == "Fine."


def test_no_sign_is_cut_in_two():
    text = f"ab{FAMILY}cd"
    assert shortened(text, 4) == f"ab … ({len(text) - 2} more characters)"
    assert shortened(text, 2 + len(FAMILY)) == f"ab{FAMILY} … (2 more characters)"
    assert shortened("e\u0301e\u0301", 3) == "e\u0301 … (2 more characters)"
    assert shortened("🇩🇪🇫🇷", 3) == "🇩🇪 … (2 more characters)"
    # A first sign that is longer than the limit is shown, whole.
    assert shortened(FAMILY + "x", 3) == f"{FAMILY} … (1 more characters)"


def test_without_the_library_it_is_cut_at_white_space(monkeypatch):
    find = importlib.import_module

    def no_regex(name, *rest):
        if name == "regex":
            raise ModuleNotFoundError("No module named 'regex'", name="regex")
        return find(name, *rest)

    monkeypatch.setattr(importlib, "import_module", no_regex)
    assert shortened(f"ab {FAMILY} cd", 6) == f"ab … ({len(FAMILY) + 4} more characters)"
    assert shortened(FAMILY * 2, 6) == FAMILY * 2  # no place to cut


def test_markup_is_taken_for_letters():
    assert plain_line("*a* <b>") == "&#42;a&#42; &#60;b&#62;"
    assert quoted('a"b') == '"a\\"b"'
    assert rounded(-1234.5) == "\u22121,234"
    assert markdown_table([["a", "b"], ["1", "2"]], (1,)) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
