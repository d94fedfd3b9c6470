"""The shipped search spaces."""

from importlib import resources

import optuna
import pytest

from trainable.core.config import TrainConfig
from tune.search.asha import rung_epochs
from tune.spec.sweep_file import dump, load_sweep_config

FILES = sorted(
    entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith((".yaml", ".yml"))
)


def test_all_are_there() -> None:
    assert {"brats.yaml", "demo.yaml", "finetune.yaml", "quick.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_loads_and_samples_valid_recipes(name: str) -> None:
    config = load_sweep_config(name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    seen: set[str] = set()
    for _ in range(50):
        values = config.space.suggest(study.ask())
        config.train_config(values)
        seen |= set(values)
    assert seen == {parameter.name for parameter in config.space.parameters}
    assert rung_epochs(config)


@pytest.mark.parametrize("name", FILES)
def test_trial_0_is_the_default_recipe_as_far_as_the_space_contains_it(name: str) -> None:
    config = load_sweep_config(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(config.space.default_params())
    values = config.space.suggest(study.ask())
    default = TrainConfig().model_dump(mode="json")
    moved = {name: value for name, value in values.items() if value != default[name]}
    assert moved == ({"lr": 2e-4, "gradient_clipping": 0.25} if name == "finetune.yaml" else {})


@pytest.mark.parametrize("name", FILES)
def test_round_trip_and_header(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("dump") / "study.yaml"
    file.write_text(dump(load_sweep_config(name)))
    assert load_sweep_config(file) == load_sweep_config(name)
    text = (resources.files("search_spaces") / name).read_text()
    assert text.startswith("# ")
    assert f"voxtune launch search_spaces/{name} --data DIR --out RUN" in text


def test_the_trainers_advice_is_kept() -> None:
    """配置建议 in the seed: the quick prototype and the fine-tuning."""
    quick, finetune = load_sweep_config("quick"), load_sweep_config("finetune")
    assert {key: quick.train[key] for key in ("epochs", "val_freq", "save_freq")} == {
        "epochs": 50,
        "val_freq": 2,
        "save_freq": 10,
    }
    ranges = {parameter.name: parameter for parameter in finetune.space.parameters}
    assert ranges["lr"].kind.contains(5e-5)
    assert ranges["gradient_clipping"].kind.contains(0.5)
    assert finetune.train["scheduler"] == "cosine"


def test_demo_fits_two_cores_without_a_gpu() -> None:
    demo = load_sweep_config("demo")
    assert (demo.resources.cpu, demo.resources.gpu, demo.train["device"]) == (1, 0, "cpu")
    assert demo.budget.trials >= 12
    assert len(demo.space.parameters) >= 5
