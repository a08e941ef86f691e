"""The YAML files say what their recipes understand, and agree with each other; recipes can be read and imported."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.ppo import PPOConfig

PROJECT = Path(__file__).parents[1]
PRESETS = sorted((PROJECT / "recipes/configs").glob("preset_*.yaml"))  # parts of a run
CONFIGS = sorted(set((PROJECT / "recipes/configs").glob("*.yaml")) - set(PRESETS))  # whole runs
RECIPES = sorted((PROJECT / "recipes").glob("*.py"))
SERVERS = {"serve_reward"}  # they read no dataset and write nothing


def name_of(file):
    return file.stem


def header_of(file):
    """The comment at the top, without its marks."""
    lines = file.read_text(encoding="utf-8").splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:count])


def commands_in(text):
    """`(recipe, config)` of each command `recipes/NAME.py --config FILE`."""
    return re.findall(r"(recipes/\w+\.py) --config (\S+\.yaml)", text)


class Parsed(Exception):
    """Carries the options out of a recipe's `main`, which would go on to load data and models."""


def options_of(recipe, *arguments):
    """What a recipe understands of a command line, all dataclasses in one dictionary."""
    spec = importlib.util.spec_from_file_location(f"{recipe.stem}_for_its_options", recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class OnlyParses(RecipeParser):
        def parse(self, argv=None):
            raise Parsed(super().parse(argv))

    module.RecipeParser = OnlyParses
    with pytest.raises(Parsed) as parsed:
        module.main(list(map(str, arguments)))
    options = {}
    for group in parsed.value.args[0]:
        options |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.init}
    return options


@pytest.fixture(scope="module")
def configs():
    """The options of every YAML file, by the name of the file."""
    return {file.stem: options_of(PROJECT / commands_in(header_of(file))[-1][0], "--config", file) for file in CONFIGS}


def models_among(rewards):
    return {reward["func"] for reward in rewards if "/" in reward["func"] and ".py" not in reward["func"]}


# ---- each file


def test_there_are_configs_and_recipes():
    assert len(CONFIGS) >= 5
    assert {recipe.stem for recipe in RECIPES} >= {"reward", "ppo", "evaluate", "sft", "dpo", "rloo", "grpo"}


@pytest.mark.parametrize("file", CONFIGS, ids=name_of)
def test_the_header_says_on_what_how_long_what_to_expect_and_what_comes_before(file):
    header = header_of(file)
    for what in ("Hardware:", "Time:", "Expect:", "Before:"):
        assert re.search(rf"^{what} +\S", header, re.MULTILINE), f"{what} is missing in the header of {file.name}"


@pytest.mark.parametrize("file", CONFIGS, ids=name_of)
def test_the_header_has_figures_and_no_gaps_to_fill(file):
    assert "TBD" not in header_of(file)


@pytest.mark.parametrize("file", CONFIGS, ids=name_of)
def test_the_header_ends_with_the_command_that_runs_the_file(file):
    commands = commands_in(header_of(file))
    assert commands, f"{file.name} says no command"
    assert commands[-1][1] == f"recipes/configs/{file.name}"
    for recipe, config in commands:
        assert (PROJECT / recipe).is_file()
        assert (PROJECT / config).is_file()


def test_every_file_is_understood_by_its_recipe(configs):
    assert set(configs) == {file.stem for file in CONFIGS}
    of_a_run, of_a_server = ("output_dir",), ("reward_funcs", "host", "port")
    for name, options in configs.items():
        for needed in of_a_server if name in SERVERS else of_a_run:
            assert options[needed], name
        assert name in SERVERS or options.get("dataset_name") or options.get("rollouts"), name
        assert options.get("model_name_or_path") or options.get("reward_funcs"), name


def test_what_a_file_reads_is_made_by_what_its_header_says_comes_before(configs):
    makers = {options.get("output_dir"): f"{name}.yaml" for name, options in configs.items()}
    for file in CONFIGS:
        before = header_of(file).partition("Before:")[2]
        options = configs[file.stem]
        read = {
            options.get(name) for name in ("dataset_name", "model_name_or_path", "ref_model_name_or_path", "rollouts")
        }
        for rewards in ("reward_funcs", "judge_funcs"):
            read |= models_among(options.get(rewards) or [])
        for path in read - {None}:
            assert path.startswith(("starter/", "runs/")), f"{file.name} reads {path}"
            maker = "rlhf_recipes.data.starter" if path.startswith("starter/") else makers[path]
            assert maker in before, f"{file.name} reads {path}, and does not say that {maker} comes before"


def test_no_two_runs_write_into_one_folder(configs):
    folders = [options["output_dir"] for name, options in configs.items() if name not in SERVERS]
    assert len(set(folders)) == len(folders)


# ---- presets: what makes a method, and nothing else


def preset_of(file):
    (args,) = RecipeParser((PPOConfig,)).parse(["--config", str(file)])
    return args


def test_there_is_a_preset_for_each_method():
    assert [file.stem for file in PRESETS] == ["preset_actor_critic", "preset_policy_gradient", "preset_ppo"]


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_says_its_source_its_use_and_how_to_put_it_before_a_run(file):
    header = header_of(file)
    for what in ("Source:", "Use it:", "How:"):
        assert re.search(rf"^{what} +\S", header, re.MULTILINE), f"{what} is missing in the header of {file.name}"
    assert f"recipes/ppo.py --config recipes/configs/{file.name} --config my_run.yaml" in header


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_leaves_models_data_and_sizes_to_the_run(file):
    keys = set(re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert keys <= {"num_ppo_epochs", "num_mini_batches", "cliprange", "cliprange_value", "critic", "vf_coef", "gamma",
                    "lam", "whiten_advantages"}  # fmt: skip


def test_the_presets_are_the_methods_of_their_papers():
    actor_critic, policy_gradient, ppo = map(preset_of, PRESETS)
    for on_policy in (actor_critic, policy_gradient):
        assert (on_policy.num_ppo_epochs, on_policy.num_mini_batches, on_policy.cliprange) == (1, 1, None)
    assert (policy_gradient.critic, policy_gradient.vf_coef, policy_gradient.gamma) == ("none", 0.0, 1.0)
    assert (actor_critic.critic, actor_critic.lam, actor_critic.cliprange_value) == ("head", 0.95, None)
    assert ppo.num_ppo_epochs * ppo.num_mini_batches > 1
    assert (ppo.critic, ppo.lam, ppo.cliprange, ppo.cliprange_value) == ("head", 0.95, 0.2, 0.2)


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_with_an_unknown_key_is_refused(file, tmp_path, capsys):
    changed = tmp_path / file.name
    changed.write_text(file.read_text(encoding="utf-8") + "num_ppo_epoch: 1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        preset_of(changed)
    assert "unknown key 'num_ppo_epoch'" in capsys.readouterr().err


def test_the_file_of_a_run_wins_over_the_preset_before_it():
    preset, run = PROJECT / "recipes/configs/preset_policy_gradient.yaml", "recipes/configs/quickstart_ppo.yaml"
    options = options_of(PROJECT / "recipes/ppo.py", "--config", preset, "--config", PROJECT / run)
    assert options["num_ppo_epochs"] == 2  # of the run
    assert options["critic"] == "none"  # of the preset, because the run does not say


# ---- the quickstart as a whole


@pytest.fixture(scope="module")
def stages(configs):
    return {name.removeprefix("quickstart_"): o for name, o in configs.items() if name.startswith("quickstart_")}


def test_the_policy_is_tuned_with_the_reward_model_and_without_the_judge(stages):
    models = models_among(stages["ppo"]["reward_funcs"])
    assert models == {stages["reward"]["output_dir"]}
    for name in ("before", "after"):
        assert models_among(stages[name]["reward_funcs"]) == models | {stages["judge"]["output_dir"]}


def test_the_judge_has_another_backbone_and_other_rows(stages):
    reward, judge = stages["reward"], stages["judge"]
    assert judge["model_name_or_path"] != reward["model_name_or_path"]
    (_, end), (start, _) = (map(float, stage["train_share"].split(":")) for stage in (reward, judge))
    assert end <= start


def test_before_and_after_differ_in_the_policy_alone(stages):
    before, after = stages["before"], stages["after"]
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {"model_name_or_path", "output_dir"}
    assert before["model_name_or_path"] == stages["ppo"]["model_name_or_path"]
    assert after["model_name_or_path"] == stages["ppo"]["output_dir"]
    # KL is against the model below the adapters, or else it must be named.
    assert stages["ppo"]["use_peft"] or after["ref_model_name_or_path"] == before["model_name_or_path"]


def test_the_policy_is_measured_as_it_was_trained_on_rows_it_has_not_seen(stages):
    ppo, after = stages["ppo"], stages["after"]
    for name in ("dataset_name", "prompt_column", "prompt_words", "max_completion_length", "temperature"):
        assert ppo[name] == after[name], name
    assert ppo["dataset_train_split"] != after["dataset_test_split"]
    assert after["max_eval_samples"] >= 128
    assert after["temperature"] == 1.0


def test_the_score_is_what_was_trained_for_and_the_others_only_watch(stages):
    trained = {reward["name"]: reward["weight"] for reward in stages["ppo"]["reward_funcs"]}
    measured = {reward["name"]: reward["weight"] for reward in stages["after"]["reward_funcs"]}
    assert {name: weight for name, weight in measured.items() if weight} == trained
    assert {name for name, weight in measured.items() if not weight} == {"judge", "vader"}


def test_ppo_saves_often_enough_to_go_on(stages):
    ppo = stages["ppo"]
    rollouts = ppo["total_episodes"] / (ppo["per_device_train_batch_size"] * ppo["gradient_accumulation_steps"])
    assert ppo["save_strategy"] == "steps"
    assert 1 <= ppo["save_steps"] <= rollouts / 2


# ---- the recipes


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_can_be_read_in_one_sitting(recipe):
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_nothing_runs_at_import(recipe):
    """At the top level stand imports, classes, functions and constants, and the call of `main` behind its guard."""
    docstring, *body = ast.parse(recipe.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    *body, last = body
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    for node in body:
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign), (
            f"{recipe.name}, line {node.lineno}: {ast.unparse(node)}"
        )
        if isinstance(node, ast.Assign):
            assert not [part for part in ast.walk(node.value) if isinstance(part, ast.Call)], ast.unparse(node)
    assert [node.args.args[0].arg for node in body if getattr(node, "name", "") == "main"] == ["argv"]


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_commands_in_a_docstring_can_be_pasted(recipe):
    source = recipe.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    # In an ordinary string a backslash at the end of a line swallows the line break.
    assert docstring.count(" \\\n") == source.partition('"""\n\nimport')[0].count(" \\\n")
    for script, config in commands_in(docstring):
        assert (PROJECT / script).is_file()
        assert (PROJECT / config).is_file()
    for script, rest in re.findall(r"(recipes/\w+\.py) (--.*)", docstring.replace(" \\\n", " ")):
        arguments = [str(PROJECT / word) if word.startswith("recipes/configs/") else word for word in rest.split()]
        assert options_of(PROJECT / script, *arguments)["host" if Path(script).stem in SERVERS else "output_dir"]
