"""The verbs of `voxtune`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.files import is_locked
from trainable.core.options import format_value, to_dict
from tune.run.report import make_console, summary_line, trial_table
from tune.run.results import Run, TrialResult, read_run, recipe_text
from tune.search.sampler import first_recipes
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

app = typer.Typer(
    help="Find, prove and retrain the best 3D U-Net recipe for brain-tumour MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = make_console()

Space = Annotated[str, typer.Argument(help="YAML of the sweep: a file, or brats, quick, finetune, demo.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a sweep.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value over the YAML; repeatable.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; by default a local one is started.")]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    cases: Annotated[int, typer.Option(help="How many.")] = 12,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Voxels: x, y, z.")] = (240, 240, 155),
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other cases.")] = 0,
) -> None:
    """Write synthetic cases in BraTS's file format."""
    from trainable.data.phantom import write_phantoms

    write_phantoms(out, cases=cases, shape=shape, seed=seed)


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder with one folder a case.")],
    cache_dir: Annotated[Path | None, typer.Option("--cache_dir", help="By default beside the data.")] = None,
    skip_bad_cases: Annotated[bool, typer.Option("--skip_bad_cases", help="Go on without bad cases.")] = False,
) -> None:
    """Check the cases of a folder and preprocess them once for all trainings."""
    from trainable.data.prepare import prepare_data

    config = TrainConfig(data_dir=data.resolve(), cache_dir=cache_dir, skip_bad_cases=skip_bad_cases)
    found = prepare_data(config)
    echo(f"cache: {found.folder}")


@app.command()
def check(space: Space, set_: Set = None) -> None:
    """Check a YAML; show the space as a table and the first trials of its sweep."""
    config = load_sweep_config(space, set_ or [])
    show_space(config)
    console.print("\n[bold]the first trials[/]")
    for number, values in enumerate(first_recipes(config, 5)):
        config.train_config(values)
        console.print(f"  {number}: " + ", ".join(f"{name}={value}" for name, value in values.items()))
    console.print("\nok")


def show_space(config: SweepConfig) -> None:
    """The space as a table, and how the sweep will go about it."""
    table = Table("option", "kind", "range", "when", box=None, header_style="bold")
    for row in config.space.describe():
        table.add_row(*row)
    console.print(table)
    rungs = ", ".join(map(str, config.rungs))
    stopping = f"{config.early_stopping.type} at epochs {rungs}" if config.rungs else "no early stopping"
    horizon = config.fixed("epochs")
    need = f"{config.resources.cpu} CPU, {format_value(config.resources.gpu)} GPU a trial"
    console.print(
        f"\n{config.budget.trials} trials of up to {horizon} epochs; {config.searcher.type}; {stopping}; {need}"
    )
    if config.unmodelled_options:
        console.print(f"{config.searcher.type} cannot model {', '.join(config.unmodelled_options)}: drawn at random")


@app.command()
def launch(
    space: Space,
    data: Annotated[Path, typer.Option(help="Folder with one folder a case.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep, new.")],
    trials: Annotated[int | None, typer.Option(help="Number of trials; short for --set study.trials=N.")] = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where Ray keeps checkpoints: a shared folder, or a URI such as s3://bucket/sweeps, where snapshots "
            "of OUT's text files are kept too. Credentials are taken from the environment; a server other than AWS: "
            "s3://bucket/sweeps?endpoint_override=HOST:PORT&scheme=http."
        ),
    ] = None,
    skip_bad_cases: Annotated[bool, typer.Option("--skip_bad_cases", help="Go on without bad cases.")] = False,
    warm_start: Annotated[
        list[Path] | None, typer.Option("--warm_start", metavar="RUN", help="Begin with its trials; repeatable.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail_fast", help="End the sweep at the first failed trial.")] = False,
    set_: Set = None,
) -> None:
    """Run a sweep."""
    overrides = [f"train.data_dir={json.dumps(str(data.resolve()))}", *(set_ or [])]
    overrides += [f"study.trials={trials}"] * (trials is not None)
    overrides += ["train.skip_bad_cases=true"] * skip_bad_cases
    overrides += ["resources.fail_fast=true"] * fail_fast
    config = load_sweep_config(space, overrides)
    show_space(config)
    earlier = [folder.resolve() for folder in warm_start or []]
    from tune.driver.cluster import Cluster  # after the YAML is checked: this imports Ray

    with Cluster(address) as cluster:  # which starts beside the import of torch
        from tune.driver.sweep import launch as launch_sweep

        print_outcome(launch_sweep(config, out.resolve(), cluster=cluster, storage=storage, earlier=earlier))


@app.command()
def resume(
    run: RunFolder,
    trials: Annotated[int | None, typer.Option(min=1, help="New total of trials, to extend the sweep.")] = None,
    space: Annotated[
        str | None, typer.Option(help="YAML with another space to go on in; trials that lie in it are taken over.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STORAGE/NAME",
            help="Make RUN from the snapshot at this URI first, as launch printed it; RUN is new. No storage can be "
            "locked: do not let two machines go on with one sweep at the same time.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the cases lie now; their cache is made beside them.")] = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Go on with a sweep that was interrupted, or extend it: more trials, another budget or target."""
    from tune.driver.cluster import Cluster
    from tune.driver.sweep import resume as resume_sweep
    from tune.run.snapshot import restore_snapshot

    overrides = [*(set_ or []), *[f"study.trials={trials}"] * (trials is not None)]
    run, data = run.resolve(), data and data.resolve()
    if from_ is not None:
        restore_snapshot(from_, run)
    print_outcome(resume_sweep(run, cluster=Cluster(address), overrides=overrides, space=space, data_dir=data))


def echo(text: str) -> None:
    """Print a line as it is: a path may hold what the console would take for markup."""
    console.print(text, markup=False, soft_wrap=True)


def print_outcome(run: Run) -> None:
    """What a sweep found and what to type next."""
    console.print(f"\n{summary_line(run)}")
    if skipped := (run.config.record or {}).get("skipped_cases"):
        echo(f"{len(skipped)} bad cases were left out, see {run.folder}/study.yaml")
    if not run.ranking:
        echo(f"no trial has a score; see {run.folder}/trials/*/error.txt and stdout.log")
        raise typer.Exit(1)
    console.print(trial_table([run.best()], run.config.fixed("epochs"), title="best trial"))
    for verb in ("best", "retrain"):
        echo(f"next: voxtune {verb} {shlex.quote(str(run.folder))}")


@app.command()
def status(run: RunFolder) -> None:
    """All trials of a sweep, running or not."""
    found = read_run(run)
    console.print(summary_line(found))
    console.print(trial_table(found.trials, found.config.fixed("epochs")))
    if found.unfinished and not is_locked(run):
        echo(f"no process drives it now; go on with: voxtune resume {shlex.quote(str(run))}")


@app.command()
def verify(run: RunFolder) -> None:
    """Check by its folder alone that nothing of a sweep is lost, doubled or decided wrongly."""
    from tune.run.verify import verify as verify_run

    found = read_run(run)
    results = verify_run(found)
    echo(summary_line(found))
    for name, findings in results.items():
        console.print(f"{'ok   ' if not findings else 'WRONG'}  {name}", markup=False)
        for finding in findings:
            echo(f"         {finding}")
    if any(results.values()):
        raise typer.Exit(1)


@app.command()
def best(
    run: RunFolder,
    top: Annotated[int, typer.Option(min=1, help="How many trials to show.")] = 5,
    export: Annotated[Path | None, typer.Option(help="Write the winner's recipe as YAML.")] = None,
) -> None:
    """The best trials, and the winner's recipe against the default."""
    found = read_run(run)
    winner = found.best()
    console.print(summary_line(found))
    console.print(trial_table(found.ranking[:top], found.config.fixed("epochs")))
    if found.config.objective.cost:
        title = f"Pareto front: no other trial has more {found.config.objective.score} for fewer {found.config.objective.cost}"
        console.print(trial_table(found.pareto_front(), found.config.fixed("epochs"), title=title))
    console.print(recipe_diff_table(found, winner))
    if export is not None:
        export.write_text(recipe_text(found, winner))
        echo(f"wrote {export}: python train.py --config {shlex.quote(str(export))} --data_dir DIR")


def recipe_diff_table(run: Run, trial: TrialResult) -> Table:
    """The searched options of a trial beside the default recipe."""
    table = Table("option", f"trial {trial.number}", "default", box=None, header_style="bold", title_justify="left")
    default = to_dict(run.config.base_config())
    for name, value in to_dict(run.recipe(trial)).items():
        if name in trial.values:
            changed = value != default[name]
            table.add_row(name, f"[bold]{value}[/]" if changed else str(value), str(default[name]))
    return table


@app.command()
def retrain(
    run: RunFolder,
    trial: Annotated[int | None, typer.Option(help="Number of the trial; by default the best.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe as YAML instead of a trial's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs; by default the sweep's.")] = None,
    with_val: Annotated[bool, typer.Option("--with_val", help="Train on the validation cases too.")] = False,
    name: Annotated[str | None, typer.Option(help="Folder below RUN/retrain.")] = None,
) -> None:
    """Train the winner anew, and score it on the held-out test cases once."""
    from tune.retrain import retrain as retrain_trial

    folder = retrain_trial(run.resolve(), number=trial, config_file=config, epochs=epochs, with_val=with_val, name=name)
    echo(f"model: {folder}/checkpoints/best_model.pth")


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="best_model.pth, or the folder of a training.")],
    cases: Annotated[list[Path], typer.Argument(metavar="CASE_DIR...", help="Folders of cases, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for CASE.nii.gz.")],
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over the 8 mirrored volumes.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also write CASE.png.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment cases; score those that have a seg file."""
    from trainable.evaluate import save_scores, score_table
    from trainable.predict import BadCases, predict_cases

    bad: BadCases | None = None
    try:
        scores = predict_cases(checkpoint, cases, out, mirror=mirror, pictures=pictures, device=device)
    except BadCases as error:
        bad, scores = error, error.scores
    if scores:
        echo(score_table(scores))
        save_scores(scores, out / "scores", {"checkpoint": str(checkpoint), "mirror": mirror})
    echo(f"wrote {out}")
    if bad is not None:
        raise bad


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for everything, new; by default voxtune_demo.")] = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials.")] = None,
) -> None:
    """A whole sweep on synthetic cases, in minutes on a laptop's CPU."""
    from tune.demo import run_demo

    run_demo(None if out is None else out.resolve(), trials)
