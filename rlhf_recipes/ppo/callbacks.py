"""What happens around an optimizer step of PPO, by the Trainer's own callbacks."""

from typing import Any

from transformers import TrainerCallback


class AfterEachStep(TrainerCallback):
    """Hands the figures of each optimizer step on, keeps the policy still while the critic warms up, shows samples."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if state.global_step < trainer.settings.critic_warmup * trainer.sizes.updates:
            # Its gradients are 0, but weight decay and an optimizer's momentum would still move what has one.
            for parameter in trainer.roles.policy.parameters():
                parameter.grad = None
        if not trainer.tokens_of_step:  # all completions masked: the same holds for all that is trained
            for parameter in trainer.roles.parameters():
                parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.after_step()
        rollouts, rest = divmod(state.global_step, trainer.sizes.updates)
        tables = trainer.settings.num_sample_generations
        # Where the run is evaluated anyway, its completions are shown then.
        if trainer.interrupt.asked or rest or not tables or args.eval_strategy != "no" or trainer.eval_dataset is None:
            return
        if (rollouts - 1) % -(-trainer.sizes.iterations // tables) == 0:
            trainer.generate_completions(sampling=True)
