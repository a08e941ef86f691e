"""A PPO script as one writes it for TRL 1.12; only the line that imports PPOConfig and PPOTrainer is of this project.

python trl_script.py --sft_model_path POLICY --reward_model_path REWARD --dataset_name PROMPTS.jsonl --output_dir OUT
"""

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
)
from trl import ModelConfig, ScriptArguments, get_peft_config

from rlhf_recipes import PPOConfig, PPOTrainer

if __name__ == "__main__":
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(training_args.sft_model_path, padding_side="left")
    # A token of its own, for which the models have no embedding: their vocabulary stays as it is.
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, dtype="float32")
    peft_config = get_peft_config(model_args)
    reference = None
    if peft_config is None:
        reference = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, dtype="float32")
    heads = [
        AutoModelForSequenceClassification.from_pretrained(
            training_args.reward_model_path, num_labels=1, dtype="float32"
        )
        for _ in range(2)
    ]

    def encode(row):
        return {"input_ids": tokenizer(row["prompt"])["input_ids"]}

    prompts = load_dataset("json", data_files=script_args.dataset_name, split="train")
    prompts = prompts.map(encode, remove_columns=prompts.column_names, num_proc=training_args.dataset_num_proc)
    rows = prompts.train_test_split(test_size=4, shuffle=False)

    trainer = PPOTrainer(
        training_args,
        tokenizer,
        policy,
        reference,
        heads[0],
        rows["train"],
        heads[1],
        eval_dataset=rows["test"],
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.generate_completions()
