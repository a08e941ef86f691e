"""Run by torchrun: the policy of the second process draws at random in training, that of the first does not."""

import os
import sys
from pathlib import Path

from rlhf_recipes.ppo.first_update import StochasticPolicyError
from tests.ppo.helpers import tiny_policy, trainer
from tests.ppo.test_first_update import shaken

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
run = trainer(folder / "run", tiny_policy() if rank == "0" else shaken(), per_device_train_batch_size=4)
try:
    run.train()
except StochasticPolicyError:
    (folder / f"stopped-{rank}").touch()
    raise
