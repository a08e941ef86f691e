"""From two files to rows: every number here is read off the lines below."""

import random

import pytest

from rlhf_recipes.data.preprocessing import split_of
from rlhf_recipes.data.starter.sentences import build_splits, join_ratings

SENTENCES = """id\tsentiment\ttext\r
1\t2.5\tLovely &amp; Amazing   involves us.\r
2\t-1.0\tEh.\r
3\t3.0\tlovely & amazing involves us.\r
4\t1.0\tThe votes of this one say something else.\r
5\t1.0\tNobody voted on this one.\r
"""
VOTES = "1\t2.5\t0.5\t[2, 3]\r\n2\t-1\t0\t[-1, -1]\r\n3\t3\t0\t[3]\r\n4\t1\t0\t[2]\r\n"
# Documents 1, 2 and 10. "Yes." is said in two of them.
OF_DOCUMENTS = "id\tsentiment\ttext\n10_1\t0\tTen.\n2_1\t1\tYes.\n1_10\t-2\tLast.\n1_2\t1\tYES.\n1_1\t4\tFirst.\n"
THEIR_VOTES = "\n1_1\t4\t0\t[4, 4]\n1_2\t1\t1\t[0, 2]\n1_10\t-2\t1\t[-3, -1]\n2_1\t1\t0\t[1]\n10_1\t0\t4\t[-4, 4]\n"


def test_rows_hold_what_both_files_say():
    rows, counts = join_ratings(SENTENCES, VOTES)
    assert rows == [
        {"completion": "Lovely & Amazing involves us.", "score": 2.5, "votes": [2, 3]},
        {"completion": "Eh.", "score": -1.0, "votes": [-1, -1]},
        {"completion": "lovely & amazing involves us.", "score": 3.0, "votes": [3]},
    ]
    assert counts == {"sentences": 5, "broken_lines": 0, "in_one_file_only": 1, "mean_mismatches": 1}


def test_the_first_of_two_copies_stays_and_the_other_is_counted():
    splits, counts = build_splits(SENTENCES, VOTES)
    rows = [row for of_split in splits.values() for row in of_split]
    assert sorted(row["completion"] for row in rows) == ["Eh.", "Lovely & Amazing involves us."]
    assert counts["duplicates_removed"] == 1
    assert "documents" not in counts
    assert counts["rows_train"] + counts["rows_validation"] + counts["rows_test"] == 2
    for name, of_split in splits.items():
        assert all(split_of(row["completion"]) == name for row in of_split)


def test_nothing_depends_on_the_order_of_lines():
    header, *lines = SENTENCES.splitlines()
    votes = VOTES.splitlines()
    expected = build_splits(SENTENCES, VOTES)
    for seed in range(5):
        order = random.Random(seed)
        shuffled = "\n".join([header, *order.sample(lines, len(lines))]), "\n".join(order.sample(votes, len(votes)))
        assert build_splits(*shuffled) == expected


def test_sentences_come_in_the_order_of_documents_and_know_theirs():
    rows, counts = join_ratings(OF_DOCUMENTS, THEIR_VOTES, "nyt")
    assert [(row["group"], row["completion"]) for row in rows] == [
        ("nyt-1", "First."), ("nyt-1", "YES."), ("nyt-1", "Last."), ("nyt-2", "Yes."), ("nyt-10", "Ten."),
    ]  # fmt: skip
    assert counts == {"sentences": 5, "broken_lines": 0, "in_one_file_only": 0, "mean_mismatches": 0}


def test_all_sentences_of_a_document_are_in_one_split():
    lines = [f"{document}_{number}\t1\tSentence {document} {number}." for document in range(60) for number in range(5)]
    votes = "\n".join(f"{line.split()[0]}\t1\t0\t[1]" for line in lines)
    splits, counts = build_splits("\n".join(["id\tsentiment\ttext", *lines]), votes, "nyt")
    groups = {name: {row["group"] for row in rows} for name, rows in splits.items()}
    assert all(groups.values()), "60 documents reach every split"
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == counts["documents"] == 60
    assert {name: len(rows) for name, rows in splits.items()} == {name: 5 * len(of) for name, of in groups.items()}


def test_a_document_of_which_only_copies_are_left_is_no_document():
    _, counts = build_splits(OF_DOCUMENTS, THEIR_VOTES, "nyt")
    assert counts["duplicates_removed"] == 1
    assert counts["documents"] == 2, "document 2 said no more than Yes."


@pytest.mark.parametrize(
    ("scraped", "shown"),
    [
        ("Health &amp; Human", "Health & Human"),
        ("Health &amp;amp; Human", "Health & Human"),
        ("thought you&amp;#39;d", "thought you'd"),
        ("a &lt;3\u00a0 b", "a <3 b"),
        ("R&D; AT&T", "R&D; AT&T"),
    ],
)
def test_html_entities_are_decoded_however_often_they_were_encoded(scraped, shown):
    rows, _ = join_ratings(f"h\n1\t1\t{scraped}\n", "1\t1\t0\t[1]\n")
    assert rows[0]["completion"] == shown


@pytest.mark.parametrize("line", ["2\t1", "2\tmuch\tText.", "2\tnan\tText.", "2\t1\t&#32;", "1\t1\tAnother text."])
def test_a_broken_sentence_is_counted(line):
    rows, counts = join_ratings(f"h\n1\t1\tText.\n{line}\n", "1\t1\t0\t[1]\n2\t1\t0\t[1]\n")
    assert [row["completion"] for row in rows] == ["Text."]
    assert (counts["broken_lines"], counts["in_one_file_only"]) == (1, 1)


@pytest.mark.parametrize(
    "line",
    ["2\t1\t[1]", "2\t1\t0\t[1", "2\t1\t0\t[]", "2\t1\t0\t1", "2\t1\t0\t[1.5]", "2\t5\t0\t[5]", "2\t1\t0\t[true]"],
)
def test_broken_votes_are_counted(line):
    rows, counts = join_ratings("h\n1\t1\tText.\n2\t1\tOther.\n", f"1\t1\t0\t[1]\n{line}\n")
    assert [row["completion"] for row in rows] == ["Text."]
    assert (counts["broken_lines"], counts["in_one_file_only"]) == (1, 1)
