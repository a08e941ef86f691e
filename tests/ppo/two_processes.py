"""Run by vllm/test_generator.py through torchrun: adapters are trained, and a server writes completions."""

import json
import sys
from pathlib import Path

import torch

from tests.ppo.helpers import logged, lora_policy, trainer, weights

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = {"generator": "vllm", "vllm_server_base_url": sys.argv[2]}
    run = trainer(folder / "run", lora_policy(), per_device_train_batch_size=4, **asked)
    assert run.sizes.world == 2
    run.train()
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
