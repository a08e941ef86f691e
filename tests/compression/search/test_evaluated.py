"""What is remembered of structures."""

import json

import pytest

from rlhf_recipes.compression.search.evaluated import Evaluated, Ledger
from rlhf_recipes.compression.search.objective import Delta, Objective


def ledger(calls):
    def quality(choice):
        calls.append(choice)
        return 0.1 + 0.2 * choice[0]

    def cost(choice):
        return (1 + choice[0]) / 4

    return Ledger(quality, cost, Objective(Delta("hinge", 100.0, 0.5), nonnegative=True))


def test_each_choice_is_paid_once_and_only_where_its_delta_is_not_zero():
    calls = []
    book = ledger(calls)
    assert book((1,)) == book((1,)) == Evaluated((1,), 0.5, pytest.approx(0.3), pytest.approx(0.3))
    assert book((3,)) == Evaluated((3,), 1.0, None, 0.0)
    assert book.is_free((2,))
    assert not book.is_free((0,))
    assert (calls, book.paid) == ([(1,)], 1)
    assert book((3,), measured=True).quality == pytest.approx(0.7)
    assert book.paid == 2


def test_the_best_is_within_the_budget_and_the_front_is_not_beaten():
    book = ledger([])
    for option in range(4):
        book((option,), measured=True)
    assert book.best(0.5).choice == (1,)
    assert book.best(0.3).choice == (0,)
    with pytest.raises(ValueError, match="costs at most 0.2"):
        book.best(0.2)
    book.entries[9,] = Evaluated((9,), 0.6, 0.2, 0.0)  # dearer and worse than (1,)
    assert [entry.choice for entry in book.front()] == [(0,), (1,), (2,), (3,)]


def test_it_comes_back_from_json():
    book, other = ledger([]), ledger([])
    for option in (2, 0, 3):
        book((option,))
    other.load_state_dict(json.loads(json.dumps(book.state_dict())))
    assert list(other.entries.items()) == list(book.entries.items())
