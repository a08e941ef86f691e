"""TRL's trainer on made-up pairs of token ids, for the tests of what stands around it."""

from datasets import Dataset
from trl import RewardTrainer

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.reward_modeling.config import RewardConfig

ROWS = [
    {"chosen_ids": [10 + row % 90] * (3 + row * 37 % 64), "rejected_ids": [5], "length": 3 + row * 37 % 64}
    for row in range(64)
]


def trainer_of(folder, model, tokenizer, rows=ROWS, **options):
    settings = {"use_cpu": True, "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True}
    return RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(folder), **(settings | options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer),
    )
