"""How the files are called that runs and models leave, and that more than one place here writes, reads or looks for.

What they hold is said where they are written. The names are fixed: people's folders have them.
"""

# Of a run.
CONFIG = "config.yaml"
METRICS = "metrics.json"
ENVIRONMENT = "environment.json"
LOG_HISTORY = "log_history.json"
COMPLETIONS = "completions.jsonl"
PAGE = "report.html"
README = "README.md"
TRAINER_STATE = "trainer_state.json"  # of the Trainer, in each checkpoint
LABELED = "labeled.jsonl"
COMPRESSION = "compression.json"

# What a reward model is worth.
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.jsonl"
BIAS = "bias.json"
UNCERTAINTY = "uncertainty.json"

# Of models: those of this project, by which it is known what lies in a folder ...
REWARD_SETTINGS = "reward_config.json"
LINEAR_REWARD = "linear_reward.json"
PERSONAL_REWARD = "personal_reward.json"
ENSEMBLE = "ensemble.json"

# ... and those of transformers, peft and datasets.
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
DATASET_DICT = "dataset_dict.json"
DATASET_STATE = "state.json"
