"""Run TRL 1.12's PPOTrainer on cases of cases.py, in a process of its own, and save what it did as a `.pt`.

    python run_trl.py OVERLAY FOLDER RESULT [CASE ...]

OVERLAY holds TRL 1.12, FOLDER the models. TRL itself runs as it is: what it computes is read from the local variables
of its `train` when that calls something. Only the draw of a token is replaced, by the recorded completion.
"""

import ast
import contextlib
import gc
import inspect
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
sys.path.insert(0, sys.argv[1])

import cases  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: E402

# fmt: off
ROLLOUT = [
    "queries", "responses", "logprobs", "ref_logprobs", "values", "scores", "kl", "rewards", "advantages", "returns",
    "padding_mask", "padding_mask_p1",
]
# fmt: on
STEP = ["pg_loss", "vf_loss", "loss", "ratio"]


class Spy:
    """Notes what `train` has in its local variables at the beginning of each update and at each backward pass."""

    def __init__(self, completions: dict[tuple[int, ...], list[int]], pad: int) -> None:
        self.completions, self.pad = completions, pad
        self.rollouts: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.forced: list[
            list[int]
        ] = []  # of the batch that is being generated: one list for each token still to draw

    def permutation(self, plain: Any) -> Any:
        def wrapped(count: int) -> Any:
            if not self.rollouts:
                self.numpy_state = np.random.get_state()[1].copy()
            order = plain(count)
            there = sys._getframe(1).f_locals  # those of train
            if there["ppo_epoch_idx"] == 0:
                self.rollouts.append({name: copied(there[name]) for name in ROLLOUT})
                self.rollouts[-1] |= {"pad": self.pad, "orders": []}
                self.events.append("rollout")
            self.rollouts[-1]["orders"].append(torch.tensor(order))
            return order

        return wrapped

    def backward(self, plain: Any) -> Any:
        def wrapped(accelerator: Any, loss: Any, **kwargs: Any) -> Any:
            there = sys._getframe(1).f_locals
            self.steps.append({name: copied(there[name]) for name in STEP})
            self.events.append("backward")
            return plain(accelerator, loss, **kwargs)

        return wrapped

    def generate(self, plain: Any) -> Any:
        def wrapped(model: Any, queries: Any, pad: int, config: Any) -> Any:
            rows = [tuple(token for token in row if token != pad) for row in queries.tolist()]
            drawn = [self.completions.get(row, [11] * cases.LENGTH) for row in rows]
            self.forced = [list(tokens) for tokens in zip(*drawn, strict=True)]
            return plain(model, queries, pad, config)

        return wrapped

    def multinomial(self, probabilities: Any, num_samples: int, **kwargs: Any) -> Any:
        return torch.tensor(self.forced.pop(0)).unsqueeze(1)

    def stepped(self, *args: Any) -> None:
        self.events.append("step")


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else torch.as_tensor(value)


@contextlib.contextmanager
def watched(spy: Spy) -> Any:
    plain = np.random.permutation, Accelerator.backward, torch.multinomial, ppo_trainer.generate
    np.random.permutation = spy.permutation(plain[0])
    Accelerator.backward = spy.backward(plain[1])
    torch.multinomial = spy.multinomial
    ppo_trainer.generate = spy.generate(plain[3])
    hook = register_optimizer_step_post_hook(spy.stepped)
    try:
        yield
    finally:
        np.random.permutation, Accelerator.backward, torch.multinomial, ppo_trainer.generate = plain
        hook.remove()


class OnTheEnd(ast.NodeTransformer):
    """Lets the place of the score be the last token and not the one behind it, and values end there too."""

    changed = 0

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "sequence_lengths_p1":
            node.value = ast.Name("sequence_lengths", ast.Load())
            self.changed += 1
        return node


def with_score_on_end() -> type:
    """TRL's trainer with that one assignment changed."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(PPOTrainer.train)))
    change = OnTheEnd()
    tree = ast.fix_missing_locations(change.visit(tree))
    assert change.changed == 1, "TRL's train is not the one that was expected"
    scope: dict[str, Any] = {}
    exec(compile(tree, "train with the score on the end", "exec"), vars(ppo_trainer), scope)
    return type("PPOTrainer", (PPOTrainer,), {"train": scope["train"]})


def run(folder: Path, case: cases.Case) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    parts = cases.load(folder, case)
    tokenizer = parts["processing_class"]
    np.random.seed(0)  # TRL shuffles mini-batches with it and never seeds it
    state = np.random.get_state()[1].copy()
    spy = Spy(cases.completions(case, tokenizer.eos_token_id), tokenizer.pad_token_id)
    args = PPOConfig(output_dir=str(folder / "trl-output"), **case.config())
    with watched(spy):
        trainer = (with_score_on_end() if case.score_on_end else PPOTrainer)(args, **parts)
        before = {name: tensor.clone() for name, tensor in trainer.model.policy.state_dict().items()}
        trainer.train()
    return {
        "rollouts": spy.rollouts,
        "steps": spy.steps,
        "events": spy.events,
        "logs": trainer.state.log_history,
        "global_step": trainer.state.global_step,
        "numpy_was_seeded": bool((spy.numpy_state != state).any()),
        "before": before,
        "policy": trainer.model.policy.state_dict(),
        "critic": trainer.model.value_model.state_dict(),
    }


def main() -> None:
    assert trl.__version__ == "1.12.0", f"{trl.__file__} is TRL {trl.__version__}"
    folder, result, names = Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    gc.freeze()  # TRL collects garbage twice a rollout, which would go through all imported modules each time
    torch.save({name: run(folder, cases.CASES[name]) for name in names or cases.CASES}, result)


if __name__ == "__main__":
    main()
