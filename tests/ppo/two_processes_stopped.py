"""Run by test_kill.py through torchrun: a run with half of the episodes on each process, which something stops.

two_processes_stopped.py FOLDER {whole,stand still,go on,nan}
"""

import json
import sys
from pathlib import Path

import torch

from tests.ppo.helpers import carried_run, logged, weights

HALF = {"per_device_train_batch_size": 4}


def of_one_process_is_nan(run):
    compute_loss = run.compute_loss

    def spoilt(model, inputs, *args, **kwargs):
        if run.state.global_step == 2 and run.args.process_index == 1:
            inputs["advantages"] = inputs["advantages"] * float("nan")
        return compute_loss(model, inputs, *args, **kwargs)

    run.compute_loss = spoilt


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    run = carried_run(folder / "run", "update" if what == "stand still" else None, seconds=8, **HALF)
    assert run.sizes.world == 2
    if what == "nan":
        of_one_process_is_nan(run)
    run.train(resume_from_checkpoint=what == "go on")
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        torch.save(run.optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
