r"""Train a reward model that can be read: a regression on named features of the text, on ratings or pairs.

On the starter kit, on a laptop's CPU:

    python recipes/reward_linear.py --config recipes/configs/starter_linear.yaml

Pairs of your own (a folder, a file or a Hub id; columns chosen, rejected and perhaps prompt), named features alone:

    python recipes/reward_linear.py --dataset_name my-pairs --features Length Sentiment Marks --output_dir runs/linear

The output folder gets the model (LinearReward reads it), metrics.json, coefficients.json, importance.json, both as
pictures (coefficients.png, importance.png), config.yaml and report.html.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.columns import detect_format
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.evaluation.measure import load_validation, rating_scale
from rlhf_recipes.reward_modeling.evaluation.metrics import pair_metrics, rating_metrics
from rlhf_recipes.reward_modeling.examples import load_feedback
from rlhf_recipes.reward_modeling.linear.explanation import importance, importance_for_pairs, r2, write_explanation
from rlhf_recipes.reward_modeling.linear.features import NAMED, Embedding, FeatureSet
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.statistics import pair_units, shared


@dataclass
class LinearArguments:
    """Which features are counted, and what is fitted to them."""

    help_title = "Linear reward model"

    output_dir: str = field(metadata={"help": "Folder for the model and what is known of it."})
    features: list[str | dict] = field(
        default_factory=lambda: [*(type(group).__name__ for group in NAMED), {"BagOfWords": {"min_texts": 1}}],
        metadata={"help": "Groups of features: Length, or {BagOfWords: {max_n: 2}}, or my_features.py:MyGroup."},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A sentence encoder, for one more group."})
    completion_only: bool = field(default=False, metadata={"help": "Features of the completion without its prompt."})
    regressor: str | None = field(
        default=None, metadata={"help": "An import path, as sklearn.svm:SVR. Default: ridge, or for pairs logistic."}
    )
    regressor_args: dict | None = field(default=None, metadata={"help": "Its settings, as {C: 2.0}."})
    train_share: str = field(default="0:1", metadata={"help": "Train on rows whose hash lies in LOW:HIGH."})
    validation_split: str | None = field(default="validation", metadata={"help": "Split to calibrate scores on."})
    rating_low: float | None = field(default=None, metadata={"help": "Lower end of the scale. Default: lowest vote."})
    rating_high: float | None = field(default=None, metadata={"help": "Upper end of the scale."})
    min_gap: float = field(default=0.5, metadata={"help": "Measure on ratings that are at least this far apart."})
    bootstrap_samples: int = field(default=100, metadata={"help": "Fits for the intervals of coefficients; 0: none."})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap and of the shuffles."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    data_args, args = RecipeParser((DataArguments, LinearArguments), description=__doc__).parse(argv)
    output_dir = prepare_output_dir(args.output_dir, "reward_linear", args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", data_args, args)

    # Data.
    train = load_feedback(data_args, data_args.dataset_train_split, data_args.max_train_samples, args.train_share)
    validation = load_validation(data_args, args)
    test = load_feedback(data_args, data_args.dataset_test_split, data_args.max_eval_samples)

    # Model, and fit.
    encoder = [Embedding(args.model_name_or_path)] if args.model_name_or_path else []
    features = FeatureSet((*args.features, *encoder), args.completion_only)
    model = LinearRewardModel(features, args.regressor, args.regressor_args)
    fit_start = time.perf_counter()
    if detect_format(train.column_names) == "ratings":
        texts = Texts.of(train, "completion")
        model.fit_ratings(texts.prompts, texts.completions, train["score"])
    else:
        chosen, rejected = Texts.of(train, "chosen"), Texts.of(train, "rejected")
        model.fit_pairs(chosen.prompts, chosen.completions, rejected.completions)
    fit_seconds = round(time.perf_counter() - fit_start, 1)
    if args.bootstrap_samples and model.coefficients is not None:
        model.bootstrap(args.bootstrap_samples, args.seed)
    if validation is not None and detect_format(validation.column_names) == "ratings":
        texts = Texts.of(validation, "completion")
        model.calibrate(texts.prompts, texts.completions, validation["score"], *rating_scale(train, args))
    model.save(output_dir)
    reward = LinearReward(output_dir, calibrate=False, trust=True)

    # Measure what was saved, and tell why.
    if detect_format(test.column_names) == "ratings":
        texts, ratings = Texts.of(test, "completion"), list(test["score"])
        scores = reward(texts.prompts, texts.completions)
        said = model.calibration(scores).tolist() if model.calibration else None
        votes = list(test["votes"]) if "votes" in test.column_names else None
        metrics = rating_metrics(texts.plain(), ratings, scores, said, votes, args.min_gap, shared(texts.prompts))
        metrics |= {"r2": r2(said, ratings)} if said else {}
        found = importance(model, texts.prompts, texts.completions, ratings, args.min_gap, seed=args.seed)
    else:
        texts, others = Texts.of(test, "chosen"), Texts.of(test, "rejected")
        scores = reward(texts.prompts, texts.completions), reward(others.prompts, others.completions)
        sides = texts.plain(), others.plain()
        metrics = pair_metrics(*sides, *scores, *pair_units(texts.prompts, *sides))
        found = importance_for_pairs(model, texts.prompts, texts.completions, others.completions, seed=args.seed)
    write_explanation(model, found, output_dir)
    metrics |= {"features": len(model.features.features), "train_rows": len(train), "fit_seconds": fit_seconds}
    end_run(output_dir, metrics | {"seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()})
    print(f"{texts.plain()[0]}\n{model.read_aloud(texts.prompts[0], texts.completions[0])}")
    print(f"\nHeld-out pairs in the right order: {metrics['pairwise_accuracy']:.3f}. Saved in {output_dir}")


if __name__ == "__main__":
    run(main)
