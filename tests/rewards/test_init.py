import doctest
import subprocess
import sys

import rlhf_recipes.rewards
from rlhf_recipes.rewards import weighted_sum


def test_every_exported_name_can_be_imported():
    names = rlhf_recipes.rewards.__all__
    assert names == sorted(names)
    assert set(names) == set(rlhf_recipes.rewards._MODULE_OF)
    assert all(getattr(rlhf_recipes.rewards, name).__name__ == name for name in names)


def test_a_rule_does_not_wait_for_torch():
    code = "import sys; from rlhf_recipes.rewards import EndsWithSentence, WeightedSum; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_the_example_in_the_contract_is_true():
    assert doctest.testmod(weighted_sum) == (0, 4)
