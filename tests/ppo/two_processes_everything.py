"""Run by test_update_options.py through torchrun: `everything`, with half of the episodes on each process."""

import json
import sys
from pathlib import Path

import torch

from tests.ppo.helpers import everything, logged, weights

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = everything(folder / "run", per_device=2, accumulation=2, rollout_forward_batch_size=3)
    assert run.sizes.world == 2
    run.train()
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
