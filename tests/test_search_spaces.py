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
    assert {"brats.yaml", "brats_long.yaml", "demo.yaml", "finetune.yaml", "quick.yaml"} <= set(FILES)


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


def test_what_is_known_is_tried_first() -> None:
    """nnU-Net's recipe after the default one; of finetune.yaml the trainer's advice."""
    for name in ("brats", "brats_long", "quick"):
        config = load_sweep_config(name)
        recipe = config.train_config(config.start[0])
        nnunet = (recipe.optimizer, recipe.lr, recipe.momentum, recipe.scheduler, recipe.gradient_clipping)
        assert nnunet == ("sgd", 0.01, 0.99, "poly", 12.0)
        assert config.space.log_prior(config.start[0]) > config.space.log_prior(config.space.default_values())
    advice = load_sweep_config("finetune").start[0]
    assert (advice["lr"], advice["gradient_clipping"]) == (5e-5, 0.5)


@pytest.mark.parametrize(("space", "least", "most"), [("brats_long", 0.8, 0.95), ("brats", 0.5, 0.7)])
def test_the_prior_of_lr_covers_what_has_won_elsewhere(space: str, least: float, most: float) -> None:
    """The winners of Auto-nnU-Net's 20 searches have lr from 0.0024 to 0.0243, of which nnU-Net's is 0.01.

    brats.yaml expects that less, as its trainings are a sixth as long.
    """
    lr = next(p for p in load_sweep_config(space).space.parameters if p.name == "lr")
    branch = lr.branch({"optimizer": "sgd"})
    assert branch is not None
    drawn = [branch.from_unit((index + 0.5) / 1000, use_prior=True) for index in range(1000)]
    assert least < sum(0.0024 <= value <= 0.0243 for value in drawn) / 1000 < most


def test_the_long_search_has_as_many_steps_as_nnunet() -> None:
    train = load_sweep_config("brats_long").train
    assert train["epochs"] * train["patches_per_epoch"] / train["batch_size"] == 250_000
