"""Completions as they are written: padded to one width, with what their generator told of them."""

import torch
from transformers import GenerationConfig

from rlhf_recipes.modeling.generation import Generated, pad_left, stable_key, write

CPU = torch.device("cpu")
END, PAD = 2, 0


def test_padding_of_prompts_is_on_the_left():
    ids, mask = pad_left([[5, 6, 7], [8]], pad_token_id=0, length=4)
    assert ids.tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_a_key_depends_on_its_parts_alone():
    # From `printf "(7, 'train', 0)" | b2sum -l 64`, halved: the same everywhere, unlike hash().
    assert stable_key(7, "train", 0) == 0xA1F501AA62E24BAB >> 1
    assert len({stable_key(s, split, e) for s in range(3) for split in ("train", "eval") for e in range(50)}) == 300
    assert all(0 <= key < 2**63 for key in (stable_key(n) for n in range(99)))


class Told:
    """Says of each position where it is, so that a test sees what went where."""

    def __init__(self, completions, tells=True):
        self.completions, self.tells = completions, tells

    def generate(self, prompt_ids, mask, config, row_keys):
        ids = torch.tensor([self.completions[key] for key in row_keys])
        if not self.tells:
            return ids
        places = torch.arange(1, prompt_ids.shape[1] + ids.shape[1] + 1).float()
        of_tokens = places[prompt_ids.shape[1] :].expand(ids.shape)
        return Generated(
            ids,
            -of_tokens,
            places[None, :, None].expand(len(ids), -1, 3),
            of_tokens[..., None].expand(-1, -1, 3),
        )


COMPLETIONS = {0: [5, END, PAD], 1: [5, 6, 7], 2: [END, 8, 9]}
PROMPTS = [[5, 6], [7], [8, 9]]
CONFIG = GenerationConfig(max_new_tokens=4, eos_token_id=END, pad_token_id=PAD)


def test_what_a_generator_tells_is_padded_with_zeros_and_zero_where_nothing_was_read():
    for chunk in (64, 1, 2):
        written = write(Told(COMPLETIONS), PROMPTS, [0, 1, 2], CONFIG, CPU, chunk)
        assert written.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
        assert written.logprobs.tolist() == [[-3, -4, 0, 0], [-3, -4, -5, 0], [-3, 0, 0, 0]]
        assert written.head_inputs[..., 2].tolist() == [[3, 4, 0, 0], [3, 4, 5, 0], [3, 0, 0, 0]]
        # The last token of a completion is never read, and neither is the padding of a prompt.
        assert written.trunk[..., 0].tolist() == [[1, 2, 3, 0, 0, 0], [0, 2, 3, 4, 0, 0], [1, 2, 0, 0, 0, 0]]
        assert written.trunk.shape == (3, 6, 3)


def test_padding_that_is_no_number_does_not_get_through():
    class Broken(Told):
        def generate(self, *args):
            told = super().generate(*args)
            return Generated(told.completion_ids, torch.full(told.logprobs.shape, torch.nan))

    written = write(Broken(COMPLETIONS), PROMPTS, [0, 1, 2], CONFIG, CPU)
    assert torch.equal(written.logprobs.isnan(), written.mask.bool())


def test_a_generator_that_gives_ids_alone_tells_nothing():
    written = write(Told(COMPLETIONS, tells=False), PROMPTS, [0, 1, 2], CONFIG, CPU, chunk=2)
    assert written.completion_ids.tolist() == [[5, 2, 0, 0], [5, 6, 7, 0], [2, 0, 0, 0]]
    assert written.logprobs is written.trunk is written.head_inputs is None
