import json
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.rewards import LearnedReward, LogisticCalibration, RewardError, WeightedSum
from rlhf_recipes.rewards.combine.shared_ensemble import EnsembleSettings, SharedBaseEnsemble
from tests.ensembles import make_adapter, make_base, make_ensemble

PROMPTS = ["The film is", "A dull script", "It was bad, but", ""]
COMPLETIONS = [" good.", " and a tired cast make this a long evening for all of us.", " the music was great", ""]
ROWS = {"prompts": PROMPTS[:3], "completions": COMPLETIONS[:3], "completion_ids": [[1], [2], [3]]}


@pytest.fixture(scope="module", params=["bert", "llama"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind, tmp_path_factory):
    """The folder of an ensemble, and the scores of its members, each loaded by PEFT alone, one text at a time."""
    place = tmp_path_factory.mktemp(kind)
    base = make_base(place / "base", kind)
    folder = make_ensemble(place / "ensemble", base, kind=kind, means=(1.0, -2.0, 0.5), stds=(2.0, 1.0, 0.5))
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.eos_token if kind == "llama" else ""
    alone = []
    for index in range(3):
        model = AutoPeftModelForSequenceClassification.from_pretrained(
            folder / f"adapter_{index}", num_labels=1
        ).eval()
        model.config.pad_token_id = tokenizer.pad_token_id
        texts = [prompt + text + end for prompt, text in zip(PROMPTS[:3], COMPLETIONS[:3], strict=True)]
        with torch.no_grad():
            alone.append([model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts])
    assert np.std(alone, axis=0).min() > 0.01
    return folder, np.array(alone)


def test_members_say_what_their_adapters_say_alone(made):
    folder, alone = made
    ensemble = SharedBaseEnsemble(folder, scale="none")
    assert ensemble.members(PROMPTS[:3], COMPLETIONS[:3]) == pytest.approx(alone, abs=1e-5)
    # In any order, one at a time, and after another member has had its turn.
    for row in (2, 0):
        assert ensemble.members([PROMPTS[row]], [COMPLETIONS[row]])[:, 0] == pytest.approx(alone[:, row], abs=1e-5)
    assert LearnedReward(folder / "adapter_1")(PROMPTS[:3], COMPLETIONS[:3]) == pytest.approx(alone[1], abs=1e-5)


def test_scores_are_standardized_before_they_are_reduced(made):
    folder, alone = made
    z = (alone - [[1.0], [-2.0], [0.5]]) / [[2.0], [1.0], [0.5]]
    std = z.std(axis=0)  # numpy's, with 1/K
    expected = {
        "mean": z.mean(axis=0),
        "min": z.min(axis=0),
        "mean_minus_std": z.mean(axis=0) - 0.5 * std,
        "mean_minus_variance": z.mean(axis=0) - 0.5 * std**2,
    }
    for reduce, scores in expected.items():
        assert SharedBaseEnsemble(folder, reduce=reduce, penalty=0.5)(**ROWS) == pytest.approx(scores, abs=1e-4)
    ensemble = SharedBaseEnsemble(folder)
    assert ensemble.members(PROMPTS[:3], COMPLETIONS[:3]) == pytest.approx(z, abs=1e-4)


def test_the_disagreement_is_logged(made):
    folder, alone = made
    logged = {}
    SharedBaseEnsemble(folder, scale="none", name="judges")(**ROWS, log_metric=logged.__setitem__)
    assert logged == {"judges/disagreement": pytest.approx(alone.std(axis=0).mean(), abs=1e-5)}
    assert SharedBaseEnsemble(folder)([], []) == []


def test_it_is_a_reward_like_any_other(made):
    folder, _ = made
    worst = SharedBaseEnsemble(folder, "min", name="worst")
    once = worst(**ROWS)
    assert WeightedSum([worst], [2.0])(**ROWS) == pytest.approx([2 * score for score in once])
    pickled = pickle.dumps(worst)
    assert len(pickled) < 2000
    assert pickle.loads(pickled)(**ROWS) == pytest.approx(once, abs=1e-6)
    assert "worst" in repr(worst)
    assert not any(parameter.requires_grad for parameter in worst.model.parameters())
    assert len(worst(PROMPTS, COMPLETIONS)) == 4  # an empty text has a score too


def test_the_base_is_in_memory_once(made):
    folder, _ = made
    ensemble = SharedBaseEnsemble(folder)
    ours = sum(parameter.numel() for parameter in ensemble.model.parameters())
    adapters = sum(
        tensor.numel()
        for k in range(3)
        for tensor in load_file(folder / f"adapter_{k}/adapter_model.safetensors").values()
    )
    base = LearnedReward(folder / "adapter_0").model.get_base_model()
    whole = sum(
        p.numel() for name, p in base.named_parameters() if "lora" not in name and "modules_to_save" not in name
    )
    assert ours == whole + adapters


def test_threads_do_not_get_the_scores_of_each_other(made):
    folder, alone = made
    ensemble = SharedBaseEnsemble(folder, scale="none")
    found = {}

    def ask(number):
        found[number] = [ensemble.members(PROMPTS[:3], COMPLETIONS[:3]) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in (scores for own in found.values() for scores in own):
        assert scores == pytest.approx(alone, abs=1e-5)


def test_each_member_may_have_its_own_way_to_ratings(made, tmp_path):
    folder = tmp_path / "ensemble"
    shutil.copytree(made[0], folder)
    with pytest.raises(ValueError, match="adapter_0, adapter_1, adapter_2 has none: there were no ratings"):
        SharedBaseEnsemble(folder, scale="rating")
    for index in range(3):
        settings = RewardModelSettings.load(folder / f"adapter_{index}")
        calibration = LogisticCalibration(1.0, float(index), low=0.0, high=10.0)
        RewardModelSettings(calibration, settings.append_eos).save(folder / f"adapter_{index}")
    ratings = 10 / (1 + np.exp(-(made[1] + [[0.0], [1.0], [2.0]])))
    reward = SharedBaseEnsemble(folder, "min", scale="rating")
    assert reward(**ROWS) == pytest.approx(ratings.min(axis=0), abs=1e-4)


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    base = make_base(tmp_path / "base")
    return make_ensemble(tmp_path / "ensemble", base, count=2)


def test_an_ensemble_that_is_not_finished_says_how_to_go_on(folder):
    (folder / "ensemble.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"not finished: it has adapter_0, adapter_1, but no ensemble.json. The"
    ):
        SharedBaseEnsemble(folder)
    with pytest.raises(FileNotFoundError, match="holds no ensemble"):
        SharedBaseEnsemble(folder / "adapter_0")


def test_a_missing_adapter_is_named(folder):
    shutil.rmtree(folder / "adapter_1")
    with pytest.raises(FileNotFoundError, match="has 2 members, but adapter_1 is not there"):
        SharedBaseEnsemble(folder)


def test_adapters_of_another_base_or_with_other_outputs_are_refused(folder, tmp_path):
    other = make_base(tmp_path / "other")
    kept = shutil.copytree(folder / "adapter_1", tmp_path / "kept")
    shutil.rmtree(folder / "adapter_1")
    make_adapter(folder / "adapter_1", other, seed=1)
    with pytest.raises(ValueError, match=r"adapter_0 has the base .*/base and adapter_1 .*/other"):
        SharedBaseEnsemble(folder)
    shutil.rmtree(folder / "adapter_1")
    make_adapter(folder / "adapter_1", str(tmp_path / "base"), seed=1, num_labels=3)
    with pytest.raises(ValueError, match="adapter_0 has the outputs 1 and adapter_1 3"):
        SharedBaseEnsemble(folder)
    shutil.rmtree(folder / "adapter_1")
    shutil.copytree(kept, folder / "adapter_1")
    RewardModelSettings(max_length=7).save(folder / "adapter_1")
    with pytest.raises(ValueError, match=r"adapter_0 has the reading of texts .*max_length=7"):
        SharedBaseEnsemble(folder)


def test_nan_out_of_a_member_names_the_member(folder):
    path = folder / "adapter_1/adapter_model.safetensors"
    table = load_file(path)
    head = next(name for name in table if name.endswith("classifier.weight"))
    save_file(table | {head: table[head] * float("nan")}, path, {"format": "pt"})
    with pytest.raises(RewardError, match=r"'ensemble/adapter_1' gave nan, for row 0 \(prompt 'The film is'"):
        SharedBaseEnsemble(folder)(**ROWS)


def test_one_member_has_no_disagreement(folder):
    with pytest.raises(ValueError, match="An ensemble of 1 member has no disagreement. Train two or more"):
        EnsembleSettings(1, (0.0,), (1.0,), 10)
    data = {"members": 1, "means": [0.0], "stds": [1.0], "texts": 10}
    (folder / "ensemble.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"Cannot read .*ensemble.json: An ensemble of 1 member"):
        SharedBaseEnsemble(folder)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[1.0, 2.0], [3.0, 3.0]], "scores of member 1 have mean 3.0 and standard deviation 0.0 over 2 texts"),
        ([[1.0, float("nan")], [3.0, 4.0]], "scores of member 0 have mean nan"),
    ],
)
def test_a_member_that_tells_no_texts_apart_is_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        EnsembleSettings.of(np.array(scores))


def test_settings_are_those_of_the_scores(tmp_path):
    settings = EnsembleSettings.of(np.array([[1.0, 3.0], [0.0, -4.0]]))
    assert settings == EnsembleSettings(2, (2.0, -2.0), (1.0, 2.0), 2)
    settings.save(tmp_path)
    assert EnsembleSettings.load(tmp_path) == settings
    (tmp_path / "ensemble.json").write_text("{}")
    with pytest.raises(ValueError, match="it must hold means, members, stds, texts"):
        EnsembleSettings.load(tmp_path)
    with pytest.raises(ValueError, match="There are 2 members, but 1 means and 2 stds"):
        EnsembleSettings(2, (0.0,), (1.0, 1.0), 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce": "median"}, "reduce of SharedBaseEnsemble is 'median'; it must be one of mean, min,"),
        ({"penalty": -1.0}, "penalty -1.0; it must be a number of 0 or more"),
        ({"scale": "z"}, "scale of SharedBaseEnsemble is 'z'; it must be one of standard, rating, none"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        SharedBaseEnsemble(folder, **settings)
