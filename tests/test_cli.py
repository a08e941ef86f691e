"""What a recipe leaves behind when it ends."""

import torch

from rlhf_recipes.cli import run


def test_a_finished_run_leaves_its_process_group(tmp_path):
    def main():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)

    run(main)
    assert not torch.distributed.is_initialized()
    run(lambda: None)  # and one that never had any is fine too
