import pickle

import pytest
import torch
from datasets import Dataset
from trl import RewardTrainer

from rlhf_recipes.errors import RewardError
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.images import ImageFeedbackCollator, ImagePairCollator, ImageRows
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.trainer import FeedbackTrainer
from rlhf_recipes.rewards.image_text import ImageTextReward
from tests.tiny import tiny_classifier, tiny_tokenizer
from tests.tiny_vision import MARKS, picture, save_tiny_vision, tiny_processor, tiny_vision_classifier

RED, BLUE = picture("red"), picture("blue")
COLORS = ("red", "blue", "green", "white")


@pytest.fixture(scope="module", params=list(MARKS))
def made(request):
    processor = tiny_processor(request.param)
    return tiny_vision_classifier(processor), processor


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- scoring


def test_the_image_matters_and_so_does_the_text(made):
    reward = ImageTextReward(*made)
    one, other, text = reward(["It is"] * 3, [" red", " red", " blue"], image=[RED, BLUE, RED])
    assert abs(one - other) > 0.05
    assert abs(one - text) > 0.05


def test_the_score_is_that_of_the_model_alone(made):
    """Against a direct pass, whatever the row is batched with."""
    model, processor = made
    reward = ImageTextReward(model, processor, batch_size=3)
    prompts, completions = ["It is"] * 4, [" red", " red, and this one is longer", " blue", " good"]
    said = reward(prompts, completions, image=[RED, BLUE, None, None], images=[None, [RED], None, [BLUE]])
    mark = processor.image_token
    for score, count, text, images in zip(
        said, (1, 2, 0, 1), completions, ([RED], [BLUE, RED], None, [BLUE]), strict=True
    ):
        inputs = processor(
            text=[mark * count + "It is" + text], images=images and [images], return_tensors="pt", padding=True
        )
        with torch.no_grad():
            assert score == pytest.approx(model(**inputs).logits.item(), abs=1e-4)


def test_messages_may_hold_the_image(made):
    reward = ImageTextReward(*made)
    prompts = [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in (RED, BLUE)]
    answers = [[{"role": "assistant", "content": "red"}]] * 2
    own = reward(prompts, answers)
    bare = [[{"role": "user", "content": [{"type": "image"}]}]] * 2
    assert reward(bare, answers, image=[RED, BLUE]) == pytest.approx(own, abs=1e-5)
    assert abs(own[0] - own[1]) > 0.05


def test_saved_and_loaded_it_says_the_same(made, tmp_path):
    model, processor = made
    folder = save_tiny_vision(tmp_path / "judge", model, processor)
    calibration = LogisticCalibration(scale=1.0, offset=0.0)
    RewardModelSettings(calibration=calibration, max_length=200).save(folder)
    row = {"prompts": ["It is"] * 2, "completions": [" red"] * 2, "image": [RED, BLUE]}
    raw = ImageTextReward(model, processor)(**row)
    loaded = ImageTextReward(folder, calibrate=False)
    assert loaded(**row) == pytest.approx(raw, abs=1e-6)
    assert loaded.__name__ == "judge"
    assert loaded.encode.max_length == 200
    rated = ImageTextReward(folder)
    assert rated(**row) == pytest.approx(calibration(raw).tolist(), abs=1e-5)
    assert pickle.loads(pickle.dumps(rated))(**row) == rated(**row)


def test_mistakes(made, tmp_path):
    model, processor = made
    bert = tiny_tokenizer("bert")
    with pytest.raises(ValueError, match="reads text alone"):
        ImageTextReward(tiny_classifier(bert), processor)
    with pytest.raises(ValueError, match="give the processor too"):
        ImageTextReward(model)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ImageTextReward(model, processor, batch_size=0)
    with pytest.raises(FileNotFoundError):
        ImageTextReward(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="An image of text 0 cannot be read"):
        ImageTextReward(model, processor)([""], ["a"], image=[7])


def test_a_damaged_model_is_named():
    processor = tiny_processor()
    model = tiny_vision_classifier(processor)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    with pytest.raises(RewardError, match="gave nan, for row 0"):
        ImageTextReward(model, processor)([""], ["a"], image=[RED])


# ---- training: the colour of the image alone says which answer is right


def named(count=48):
    """A picture, and what is and is not its colour: without the picture both are as good."""
    rows = []
    for row in range(count):
        right, wrong = COLORS[row % 4], COLORS[(row + 1 + row // 4 % 3) % 4]
        rows.append({"prompt": "It is", "chosen": f" {right}", "rejected": f" {wrong}", "image": picture(right)})
    return rows


def settings(folder, **options):
    fixed = {
        "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2,
        "per_device_train_batch_size": 16, "lr_scheduler_type": "constant", "train_sampling_strategy": "random",
        "max_length": None, "logging_strategy": "no",
    }  # fmt: skip
    return RewardConfig(output_dir=str(folder), **(fixed | options))


def accuracy(model, processor, rows):
    reward = ImageTextReward(model, processor)
    prompts, images = [row["prompt"] for row in rows], [row["image"] for row in rows]
    chosen, rejected = (reward(prompts, [row[side] for row in rows], image=images) for side in ("chosen", "rejected"))
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows)


def test_pairs_through_the_trainer_of_trl(tmp_path):
    processor = tiny_processor()
    model = tiny_vision_classifier(processor)
    rows = named()
    assert accuracy(model, processor, rows) < 0.8
    # Columns of ids say to TRL that there is nothing left to tokenize.
    data = Dataset.from_list([{**row, "chosen_ids": [0], "rejected_ids": [0]} for row in rows])
    trainer = RewardTrainer(
        model=model, args=settings(tmp_path, max_steps=30), train_dataset=data, processing_class=processor.tokenizer,
        data_collator=ImagePairCollator(processor),
    )  # fmt: skip
    trainer.train()
    assert accuracy(model, processor, rows) == 1.0
    other = [row | {"image": picture(COLORS[(COLORS.index(row["rejected"].strip()))])} for row in rows]
    assert accuracy(model, processor, other) == 0.0  # with the picture of the other answer, the other answer wins


@pytest.mark.slow
def test_ratings_through_the_trainer_of_any_loss(tmp_path):
    processor = tiny_processor()
    model = tiny_vision_classifier(processor)
    pairs = named()
    rows = [{"prompt": "It is", "completion": row["chosen"], "score": 1.0, "image": row["image"]} for row in pairs]
    rows += [{"prompt": "It is", "completion": row["rejected"], "score": -1.0, "image": row["image"]} for row in pairs]
    data, objective = Dataset.from_list(rows), make_objective("mse")
    objective.fit(data)
    trainer = FeedbackTrainer(
        model=model, args=settings(tmp_path, max_steps=90, learning_rate=5e-3, loss="mse"), objective=objective,
        train_dataset=ImageRows(data, objective), processing_class=processor.tokenizer,
        data_collator=ImageFeedbackCollator(processor),
    )  # fmt: skip
    trainer.train()
    assert accuracy(model, processor, pairs) == 1.0
