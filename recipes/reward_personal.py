r"""Train a reward model that knows who is asking, and measure what that is worth to each user.

On the starter kit, whose votes carry no names, with raters that are simulated on top of the real ratings:

    python recipes/reward_personal.py --config recipes/configs/starter_personal.yaml

Ratings of your own, one user's rating of one text in each row (columns completion, score, user, perhaps prompt):

    python recipes/reward_personal.py --dataset_name my-ratings --model_name_or_path runs/quickstart/reward \
        --output_dir runs/personal

The output folder gets the model (personal_reward.json and its numbers; PersonalReward reads them), metrics.json,
curve.json, curve.png, config.yaml and report.html.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments
from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.loading import DataArguments, load_rows
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.personal.features import HiddenFeatures
from rlhf_recipes.reward_modeling.personal.measure import flat, learning_curve, plot_curve, summary
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.reward import PersonalReward
from rlhf_recipes.reward_modeling.personal.simulated import SimulatedRaters, named, simulate, take_share
from rlhf_recipes.reward_modeling.scored import Texts


@dataclass
class PersonalArguments:
    """Whose ratings they are, what is known of a text, and how many ratings to try."""

    help_title = "Personal reward model"

    output_dir: str = field(metadata={"help": "Folder for the model and what is known of it."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A reward model, whose hidden vector is a feature of the text."}
    )
    features: list[str | dict] = field(
        default_factory=lambda: ["Length", "Marks", "Sentiment"],
        metadata={"help": "More features: Length, or {Embedding: {model: my-encoder}}, or my_features.py:MyGroup."},
    )
    user_column: str = field(default="user", metadata={"help": "Column that says who gave the rating."})
    others_column: str | None = field(
        default=None, metadata={"help": "Column with the mean rating of the text by others, where it is known."}
    )
    rank: int = field(default=8, metadata={"help": "Directions in which tastes may differ."})
    train_share: str = field(default="0:1", metadata={"help": "Train on rows whose hash lies in LOW:HIGH."})
    ratings_per_user: list[int] = field(
        default_factory=lambda: [5, 10, 20, 50, 100], metadata={"help": "Fit to that many of each user's ratings."}
    )
    simulated_users: int = field(default=0, metadata={"help": "Simulate that many raters; 0: the data name theirs."})
    taste: float = field(default=0.5, metadata={"help": "Simulated: size of each taste, in rating units."})
    test_ratings_per_user: int = field(default=300, metadata={"help": "Simulated: held-out ratings of each."})
    min_gap: float = field(default=0.5, metadata={"help": "Measure on ratings that are at least this far apart."})
    seed: int = field(default=0, metadata={"help": "Of simulated raters, and of what is held out for penalties."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (DataArguments, PersonalArguments, TemplateArguments)
    data_args, args, template_args = RecipeParser(arguments, __doc__).parse(argv)
    output_dir = prepare_output_dir(args.output_dir, "reward_personal", args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", data_args, args, template_args)

    # Data: texts, and who rated which of them.
    needed = ("completion", "score", "votes" if args.simulated_users else args.user_column)
    splits = (data_args.dataset_train_split, data_args.dataset_test_split)
    train_rows, test_rows = (load_rows(data_args.dataset_name, name, data_args.dataset_config) for name in splits)
    require_columns(train_rows, (*needed, *([args.others_column] if args.others_column else [])), "A personal model")
    require_columns(test_rows, needed, "A personal model")
    train_rows = take_share(train_rows, args.train_share)
    texts, test_texts = Texts.of(train_rows, "completion"), Texts.of(test_rows, "completion")
    truth = tastes = None
    if args.simulated_users:
        raters = SimulatedRaters.draw(args.simulated_users, texts, train_rows["votes"], args.taste, seed=args.seed)
        sizes = (max(args.ratings_per_user), args.test_ratings_per_user, args.seed)
        means = (train_rows["score"], test_rows["score"])
        train, test, truth, tastes = simulate(raters, texts, means[0], test_texts, means[1], *sizes)
    else:
        train, test = (named(rows[args.user_column], rows["score"]) for rows in (train_rows, test_rows))
        test = test.of_known()
    others = [train_rows[args.others_column][text] for text in train.texts] if args.others_column else None

    # Model: the features once, the heads for each number of ratings.
    hidden = [HiddenFeatures(name, template_args.chat_template_kwargs) for name in [args.model_name_or_path] if name]
    model = PersonalRewardModel([*hidden, *args.features], args.rank, seed=args.seed)
    matrix = model.learn_features(texts.prompts, texts.completions)
    asked = model.matrix(test_texts.prompts, test_texts.completions)
    model, curve = learning_curve(
        model, matrix, train, asked, test, args.ratings_per_user, others, truth, tastes, args.min_gap
    )

    # Save, and see that what was saved says the same.
    model.save(output_dir)
    reward, first = PersonalReward(output_dir, args.user_column), min(len(test.texts), 100)
    said = reward([test_texts.prompts[text] for text in test.texts[:first]],
                  [test_texts.completions[text] for text in test.texts[:first]],
                  **{args.user_column: test.users[:first]})  # fmt: skip
    difference = float(abs(said - model.scores_of(asked[test.texts[:first]], test.users[:first])).max())
    metrics = flat(curve[-1]) | {"simulated": bool(args.simulated_users), "reload_difference": difference}
    write_json(output_dir / "curve.json", curve)
    plot_curve(curve, output_dir / "curve.png")
    end_run(output_dir, metrics | {"seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()})
    points = (f"{point['ratings_per_user']} ratings of each user: {summary(point)}" for point in curve)
    print(*points, f"Saved in {output_dir}", sep="\n")


if __name__ == "__main__":
    run(main)
