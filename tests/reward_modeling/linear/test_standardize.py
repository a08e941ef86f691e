import numpy as np
import pytest
from scipy.sparse import csr_matrix

from rlhf_recipes.reward_modeling.linear.standardize import Standardization


def test_one_scale_by_hand():
    """Named features have variance 1 each, an encoder's numbers as they are or together."""

    class Group:
        def __init__(self, standardize, bounded):
            self.standardize, self.bounded, self.from_zero = standardize, bounded, False

    class Features:
        groups = (Group(True, False), Group(False, True))

    blocks = [np.array([[0.0, 7.0], [2.0, 7.0]]), np.array([[3.0, 0.0], [-3.0, 8.0]])]  # deviations 1, 0; 3 and 4
    far = [np.array([[9.0, 9.0]]), np.array([[6.0, 0.0]])]
    apart, together = (Standardization.fit(Features, blocks, together) for together in (False, True))
    assert apart.std.tolist() == [1.0, 0.0, 3.0, 4.0]
    assert apart(blocks).tolist() == [[-1.0, 0.0, 3.0, -4.0], [1.0, 0.0, -3.0, 4.0]]
    assert apart(far)[0].tolist() == [1.0, 0.0, 6.0, -4.0]
    assert together(blocks).tolist() == [[-1.0, 0.0, 0.6, -0.8], [1.0, 0.0, -0.6, 0.8]]
    assert together(far)[0].tolist() == pytest.approx([1.0, 0.0, 1.2, -0.8])


def test_words_are_scaled_where_they_are():
    blocks = [csr_matrix([[0.0, 2.0], [1.0, 0.0]])]

    class Words:
        standardize, bounded, from_zero = False, False, True

    class Features:
        groups = (Words,)

    scaled = Standardization.fit(Features, blocks)
    assert scaled.std.tolist() == [0.5, 1.0]
    assert scaled([csr_matrix([[3.0, 1.0]])]).tolist() == [[1.0, 1.0]]  # no further than training went
