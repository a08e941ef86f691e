"""Run by test_trainer.py through torchrun: its `reference_run`, with half of the episodes on each process.

With the address of a server, run by vllm/test_generator.py: adapters are trained, and completions come from there.
"""

import json
import sys
from pathlib import Path

import torch

from tests.ppo.helpers import logged, lora_policy, trainer, weights

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = {"generator": "vllm", "vllm_server_base_url": sys.argv[2]} if len(sys.argv) > 2 else {}
    run = trainer(folder / "run", lora_policy() if asked else None, per_device_train_batch_size=4, **asked)
    assert run.sizes.world == 2
    run.train()
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
