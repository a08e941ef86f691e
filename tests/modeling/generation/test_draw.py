"""The draw: numbers that are uniform and independent, and tokens that come as often as the softmax says."""

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from scipy import stats
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rlhf_recipes.modeling.generation import KeyedDraw, stable_key
from rlhf_recipes.modeling.generation.draw import inverse_cdf, uniform

JUST_BELOW_1 = 1 - 2**-53
NO_PROMPT = torch.zeros(1, 0, dtype=torch.long)


def draw(logits, keys, **options):
    """One token for each key, all from the same logits `(V,)`."""
    return KeyedDraw(keys, 0, **options)(NO_PROMPT, logits.expand(len(keys), -1)).argmax(dim=-1)


def assert_drawn_from(tokens, probabilities):
    """A chi-square test at 1 in 1000; tokens that are expected less than 5 times count together."""
    assert (probabilities[tokens] > 0).all()
    counts, expected = torch.bincount(tokens, minlength=len(probabilities)).double(), probabilities.double()
    expected = expected * len(tokens) / expected.sum()
    often = expected >= 5
    assert often.sum() > 3
    counts = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    counts, expected = (x[:-1] if expected[-1] < 1e-9 else x for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.ppf(0.999, len(counts) - 1)


# --- Uniform numbers ----------------------------------------------------------------------------


def test_the_numbers_of_key_0_are_those_that_splitmix64_is_published_with():
    # https://prng.di.unimi.it/splitmix64.c with the seed 0; the highest 53 bits.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    numbers = [uniform(torch.tensor([0]), position).item() for position in range(5)]
    assert numbers == [(bits >> 11) / 2**53 for bits in published]


def test_signed_arithmetic_gives_what_unsigned_would():
    def mixed(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    keys = [1, 2**62, 2**63 - 1, *(stable_key("key", n) for n in range(50))]
    for position in (0, 1, 999, 10**6):
        expected = [mixed((mixed(key) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11 for key in keys]
        assert uniform(torch.tensor(keys), position).tolist() == [bits / 2**53 for bits in expected]


@pytest.mark.parametrize("keys", [range(20000), range(2**40, 2**40 + 2**20 * 20000, 2**20), None])
def test_over_keys_the_numbers_are_uniform_and_say_nothing_of_their_neighbours(keys):
    keys = torch.tensor([stable_key(1, "train", n) for n in range(20000)] if keys is None else list(keys))
    first, second = uniform(keys, 0), uniform(keys, 1)
    assert first.dtype == torch.float64
    assert first.min() >= 0
    assert first.max() < 1
    for x, y in ((first, second), (first[:-1], first[1:]), (first, uniform(keys, 7))):
        assert stats.kstest(x.numpy(), "uniform").pvalue > 1e-3
        cells = torch.bincount((8 * x).long() * 8 + (8 * y).long(), minlength=64)
        assert stats.chisquare(cells.numpy()).pvalue > 1e-3
        assert abs(stats.pearsonr(x.numpy(), y.numpy()).statistic) < 4 / len(x) ** 0.5


@pytest.mark.parametrize("key", [0, 1, stable_key(7, "train", 0)])
def test_along_a_completion_the_numbers_are_uniform_and_say_nothing_of_their_neighbours(key):
    numbers = torch.cat([uniform(torch.tensor([key]), position) for position in range(2000)])
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(numbers[:-1].numpy(), numbers[1:].numpy()).statistic) < 4 / 2000**0.5


# --- From a number to a token -------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 512, 700])
def test_the_token_is_the_first_whose_sum_exceeds_the_number(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    weights = torch.randint(0, 64, (40, vocabulary), generator=generator) * torch.randint(
        0, 2, (40, vocabulary), generator=generator
    )
    weights[:, vocabulary // 2] += 1  # so that something can be drawn
    numbers = torch.randint(0, 2**16, (40,), generator=generator).double() / 2**16  # ties with sums among them
    drawn = inverse_cdf(weights / 64, numbers)  # whose sum is another one for each row: numbers are shares of it
    for row, number, token in zip(weights.tolist(), numbers.tolist(), drawn.tolist(), strict=True):
        wanted = Fraction(number) * sum(row)
        assert token == next(n for n, total in enumerate(accumulate(row)) if total > wanted)


@pytest.mark.parametrize("vocabulary", [5, 256, 257, 1000])
@pytest.mark.parametrize("number", [0.0, 5e-324, 2**-53, 0.5, JUST_BELOW_1])
def test_a_token_that_was_removed_is_never_drawn(vocabulary, number):
    generator = torch.Generator().manual_seed(0)
    kept = [[0], [vocabulary - 1], [vocabulary // 2], [1, vocabulary - 2], list(range(min(vocabulary, 200)))]
    kept += [list(range(max(0, vocabulary - 200), vocabulary))]
    for tokens in kept:
        logits = torch.full((300, vocabulary), -torch.inf)
        logits[:, tokens] = 5 * torch.randn(300, len(tokens), generator=generator)
        drawn = inverse_cdf(torch.softmax(logits, dim=-1), torch.full((300,), number, dtype=torch.float64))
        assert set(drawn.tolist()) <= set(tokens)
        if number in (0.0, JUST_BELOW_1) and len(tokens) < 3:
            assert set(drawn.tolist()) == {tokens[0 if number == 0 else -1]}


def test_numbers_at_both_ends_draw_a_token_of_some_probability_whatever_the_rounding():
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(500, 1, generator=generator) * 60  # up to where most of the softmax is 0
    probabilities = torch.softmax(scale * torch.randn(500, 777, generator=generator), dim=-1)
    for number in (0.0, 5e-324, 2**-60, 0.5, 1 - 2**-30, JUST_BELOW_1):
        drawn = inverse_cdf(probabilities, torch.full((500,), number, dtype=torch.float64))
        assert (probabilities.gather(1, drawn[:, None]) > 0).all()


def test_a_rare_token_beside_a_common_one_keeps_its_share():
    logits = torch.zeros(1, 300)
    logits[0, 2] = 21.0  # beside it, the others are lost in a sum of 256 in float32
    probabilities = torch.softmax(logits, dim=-1)
    share = (probabilities.double() / probabilities.double().sum())[0]
    numbers = 1 - share[256:].sum() - share[3:256].sum() * torch.linspace(0.001, 0.999, 2000, dtype=torch.float64)
    drawn = inverse_cdf(probabilities.expand(2000, -1), numbers)
    assert set(drawn.tolist()) == set(range(3, 256))


def test_a_row_that_is_no_distribution_still_names_a_token():
    probabilities = torch.full((2, 300), torch.nan)
    probabilities[1] = 1 / 300
    drawn = inverse_cdf(probabilities, torch.tensor([0.3, 0.501], dtype=torch.float64))
    assert 0 <= drawn[0] < 300  # the loss will be NaN, and stops the run with its cause
    assert drawn[1] == 150


# --- The distribution ---------------------------------------------------------------------------

KEYS = [stable_key("draw", n) for n in range(6000)]
LOGITS = 2 * torch.randn(300, generator=torch.Generator().manual_seed(3))
WARPED = {
    "nothing": [],
    "top_k": [TopKLogitsWarper(20)],
    "top_p": [TopPLogitsWarper(0.7)],
    "min_p": [MinPLogitsWarper(0.05)],
    "typical_p": [TypicalLogitsWarper(0.6)],
    "epsilon_cutoff": [EpsilonLogitsWarper(0.005)],
    "eta_cutoff": [EtaLogitsWarper(0.02)],
    "top_h": [TopHLogitsWarper(0.4)],
    "top_k, top_p": [TopKLogitsWarper(50), TopPLogitsWarper(0.8)],
}


@pytest.mark.parametrize(("case", "temperature"), [("nothing", 1.0), *((case, 0.6) for case in WARPED)])
def test_over_keys_tokens_come_as_often_as_the_softmax_says(case, temperature):
    scores = LOGITS[None] / temperature
    for warper in WARPED[case]:
        scores = warper(NO_PROMPT, scores)
    assert (case == "nothing") == bool(scores.isfinite().all())
    tokens = draw(LOGITS, KEYS, temperature=temperature, warpers=WARPED[case])
    assert_drawn_from(tokens, torch.softmax(scores[0], dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_drawn_from_too(dtype):
    tokens = draw(LOGITS.to(dtype), KEYS, temperature=0.7)
    assert_drawn_from(tokens, torch.softmax(LOGITS.to(dtype).double() / 0.7, dim=0))


def test_along_one_row_tokens_come_as_often_as_the_softmax_says():
    logits, one = torch.tensor([[1.0, 0.0, -1.0, 0.5]]), KeyedDraw([stable_key("row")], 0)
    tokens = [one(torch.zeros(1, position), logits).argmax() for position in range(600)]
    assert_drawn_from(torch.stack(tokens), torch.softmax(logits[0], dim=0))


def test_a_row_is_drawn_by_its_own_key_and_place_whatever_stands_beside_it():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    together = KeyedDraw(KEYS[:50], 0)(NO_PROMPT, logits).argmax(dim=-1)
    for split in (1, 7):
        parts = zip(logits.split(split), torch.arange(50).split(split), strict=True)
        apart = [KeyedDraw([KEYS[n] for n in rows], 0)(NO_PROMPT, part).argmax(dim=-1) for part, rows in parts]
        assert torch.equal(together, torch.cat(apart))
    after_a_prompt = KeyedDraw(KEYS[:50], 9)(torch.zeros(50, 9), logits).argmax(dim=-1)
    assert torch.equal(together, after_a_prompt)
    assert not torch.equal(together, KeyedDraw(KEYS[:50], 0)(torch.zeros(50, 1), logits).argmax(dim=-1))


@pytest.mark.parametrize("case", ["nothing", "top_k", "top_p"])
def test_logprobs_are_of_the_models_own_distribution_at_the_temperature(case):
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 3
    processor = KeyedDraw(KEYS[:40], 0, 0.7, WARPED[case])
    for position in range(3):
        tokens = processor(torch.zeros(40, position), logits).argmax(dim=-1)
        expected = torch.log_softmax(logits.double() / 0.7, dim=-1).gather(1, tokens[:, None]).squeeze(1)
        torch.testing.assert_close(processor.logprobs[position].double(), expected, atol=1e-5, rtol=0)


def test_logits_that_come_changed_are_drawn_from_and_the_models_own_are_told():
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    processor = KeyedDraw(KEYS[:40], 0, 0.7, own_logits=lambda: logits)
    changed = logits.clone()
    changed[:, :200] = -torch.inf
    tokens = processor(NO_PROMPT, changed).argmax(dim=-1)
    assert (tokens >= 200).all()
    expected = torch.log_softmax(logits / 0.7, dim=-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(processor.logprobs[0], expected, atol=1e-5, rtol=0)
