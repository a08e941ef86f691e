"""Run by test_trainer.py through torchrun: its `reference_run`, with half of the episodes on each process."""

import json
import sys
from pathlib import Path

import torch

from tests.ppo.helpers import logged, trainer, weights

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = trainer(folder / "run", per_device_train_batch_size=4)
    assert run.sizes.world == 2
    run.train()
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
