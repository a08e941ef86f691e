"""Where a completion ends: what counts as its tokens."""

import torch

from rlhf_recipes.modeling.generation import completion_mask


def test_the_mask_goes_up_to_and_with_the_first_end():
    ids = torch.tensor([[5, 6, 2, 0, 0], [5, 2, 6, 2, 7], [2, 5, 5, 5, 5], [5, 6, 7, 8, 9]])
    mask, finished = completion_mask(ids, eos_token_id=2)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert finished.tolist() == [True, True, True, False]


def test_any_of_several_end_tokens_ends():
    mask, finished = completion_mask(torch.tensor([[5, 3, 2], [5, 2, 3], [5, 5, 5]]), eos_token_id=[2, 3])
    assert mask.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert finished.tolist() == [True, True, False]
