"""The verbs of `voxtune`. Each imports what it needs when it runs: Ray and torch take seconds to import."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from trainable.core.errors import InputError
from trainable.core.idle_options import idle_text
from trainable.core.locks import is_locked
from trainable.core.logger import logger, outlive_reader
from trainable.core.options import make_config
from trainable.core.package_version import version
from trainable.core.signals import handle_end_signals
from trainable.training.training_dir import TrainingDir
from tune.run.export import export_recipe
from tune.run.results import Run, read_run
from tune.run.run_dir import resume_command
from tune.run.tables import make_console, print_best, print_outcome, print_space, print_trials, summary_line
from tune.search.sampler import first_recipes
from tune.spec.idle_parameters import idle_parameters
from tune.spec.sweep_file import load_sweep_config

app = typer.Typer(
    help="Find, prove and retrain the best 3D U-Net recipe for brain-tumour MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Space = Annotated[
    str, typer.Argument(metavar="SPACE", help="YAML of the sweep: a file, or brats, quick, finetune, demo.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a sweep.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace a value of the YAML; repeatable."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="What the values of seg files mean: 2021, 2023, ped2024, gli2024 or a YAML file; by default "
        "the names of the cases tell it.",
    ),
]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; by default a local one is started.")]


def print_version(wanted: bool) -> None:
    """Print voxtune's version and exit with code 0 if `wanted`; else do nothing."""
    if wanted:
        logger.info(f"voxtune {version('voxtune')}")
        raise typer.Exit


@app.callback()
def voxtune(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options of voxtune itself."""


@app.command(epilog="Example: voxtune phantom DIR --cases 20 --shape 64 64 48")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    cases: Annotated[int, typer.Option(metavar="N", help="Number of cases.")] = 12,
    shape: Annotated[tuple[int, int, int], typer.Option(metavar="N", help="Voxels: x, y, z.")] = (240, 240, 155),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another seed gives other cases.")] = 0,
) -> None:
    """Write synthetic cases in the file format of BraTS."""
    from trainable.data.phantom import write_phantoms

    write_phantoms(out, cases=cases, shape=shape, seed=seed)


@app.command("convert_msd", epilog="Example: voxtune convert_msd Task01_BrainTumour DIR")
def convert_msd(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder Task01_BrainTumour, as it was unpacked.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write the cases in.")],
) -> None:
    """Make cases of the Medical Segmentation Decathlon's brain tumours; called again, it writes what is missing."""
    from trainable.cases.msd import convert_msd

    convert_msd(source, destination)


@app.command(epilog="Example: voxtune prepare DIR --skip_bad_cases")
def prepare(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with one sub-folder per case.")],
    cache_dir: Annotated[
        Path | None, typer.Option("--cache_dir", metavar="DIR", help="By default next to the data.")
    ] = None,
    labels: Labels = None,
    skip_bad_cases: Annotated[bool, typer.Option("--skip_bad_cases", help="Leave bad cases out.")] = False,
    background: Annotated[
        str, typer.Option(metavar="VALUE", help="Value of the images' background, or auto; train with the same one.")
    ] = "0",
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample cases of another voxel size than most; train with it too.")
    ] = False,
) -> None:
    """Check the cases of a folder and preprocess them once for all trainings."""
    from trainable.data.prepare import prepare_data

    # without val and test, so that voxel sizes are compared with the median of all cases
    options: dict[str, Any] = {
        "val_fraction": 0,
        "test_fraction": 0,
        "skip_bad_cases": skip_bad_cases,
        "labels": labels,
        "resample": resample,
    }
    options |= {"data_dir": data.resolve(), "cache_dir": cache_dir, "background": background}
    prepared = prepare_data(make_config(options, "voxtune prepare"))
    logger.info(f"cache: {prepared.folder}")


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    epilog="Example: voxtune train --data_dir DIR --output_dir OUT --epochs 50",
)
def train(context: typer.Context) -> None:
    """Train one recipe, continue a training, or test its model; `voxtune train --help` lists all options."""
    for number in handle_end_signals(signal.default_int_handler):  # the training prints itself how to go on
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    try:
        from trainable.cli import main

        raise typer.Exit(main(context.args, prog="voxtune train"))
    except KeyboardInterrupt:  # while torch is imported
        raise typer.Exit(130) from None


@app.command(epilog="Example: voxtune check my_space.yaml --set study.trials=100")
def check(space: Space, set_: Set = None) -> None:
    """Check a YAML; show the space as a table and the first trials of its sweep."""
    config = load_sweep_config(space, set_ or [])
    print_space(config)
    make_console().print("\n[bold]the first trials[/]")
    for number, values in enumerate(first_recipes(config, 5)):
        config.train_config(values)
        logger.info(f"  {number}: " + ", ".join(f"{name}={value}" for name, value in values.items()))
    logger.info(f"\ntrial 0: {config.space.describe_defaults()}")
    if idle := idle_text(idle_parameters(config.space)):
        logger.warning(f"\n{idle}")
    logger.info("\nok")


@app.command(epilog="Example: voxtune launch brats --data DIR --out RUN --trials 64")
def launch(
    space: Space,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with one sub-folder per case.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the sweep, new.")],
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Number of trials; short for --set study.trials=N.")
    ] = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where Ray keeps checkpoints: a shared folder, or a URI such as s3://bucket/sweeps, where snapshots "
            "of RUN's text files are kept too. Credentials are taken from the environment; a server other than AWS: "
            "s3://bucket/sweeps?endpoint_override=HOST:PORT&scheme=http."
        ),
    ] = None,
    labels: Labels = None,
    skip_bad_cases: Annotated[bool, typer.Option("--skip_bad_cases", help="Leave bad cases out.")] = False,
    warm_start: Annotated[
        list[Path] | None, typer.Option("--warm_start", metavar="RUN", help="Begin with its trials; repeatable.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail_fast", help="End the sweep at the first failed trial.")] = False,
    set_: Set = None,
) -> None:
    """Run a sweep in a new folder."""
    overrides = [f"train.data_dir={json.dumps(str(data.resolve()), ensure_ascii=False)}", *(set_ or [])]
    overrides += [f"study.trials={trials}"] * (trials is not None)
    overrides += [f"train.labels={json.dumps(labels)}"] * (labels is not None)
    overrides += ["train.skip_bad_cases=true"] * skip_bad_cases
    overrides += ["resources.fail_fast=true"] * fail_fast
    config = load_sweep_config(space, overrides)
    earlier = [folder.resolve() for folder in warm_start or []]
    with outlive_reader(f"the sweep goes on, see: voxtune status {out}"):
        print_space(config)
        from tune.driver.cluster import Cluster  # after the YAML is checked: this imports Ray

        with Cluster(address) as cluster:  # which starts while torch is imported
            from tune.driver.sweep import launch as launch_sweep

            finish(launch_sweep(config, out.resolve(), cluster=cluster, storage=storage, earlier=earlier))


@app.command(epilog="Example: voxtune resume RUN --trials 100")
def resume(
    run: RunFolder,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="New total of trials, to extend the sweep.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="YAML with another space to go on in; the trials in that space are imported.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STORAGE/NAME",
            help="First make RUN, a new folder, from the snapshot at this URI, as launch printed it. No storage can be "
            "locked: do not let two machines go on with one sweep at the same time.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the cases are now; their cache is made next to them.")
    ] = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Continue a sweep that was interrupted, or extend it: more trials, another budget or target."""
    from tune.driver.sweep import resume as resume_sweep
    from tune.run.snapshot import restore_snapshot

    overrides = [*(set_ or []), *[f"study.trials={trials}"] * (trials is not None)]
    run, data = run.resolve(), data and data.resolve()
    if from_ is not None:
        restore_snapshot(from_, run)
    with outlive_reader(f"the sweep goes on, see: voxtune status {run}"):
        finish(resume_sweep(run, address=address, overrides=overrides, space=space, data_dir=data))


def finish(run: Run) -> None:
    """Print the counts of a sweep's trials and the winner; exit with code 1 if no trial has a score."""
    print_outcome(run)
    if not run.ranking:
        raise typer.Exit(1)


@app.command(epilog="Example: voxtune status RUN")
def status(run: RunFolder) -> None:
    """Show all trials of a sweep, running or not."""
    result = read_run(run)
    print_trials(result)
    if result.unfinished and not is_locked(run):
        logger.info(f"no process drives it now; go on with: {resume_command(run)}")


@app.command(epilog="Example: voxtune verify RUN")
def verify(run: RunFolder) -> None:
    """Audit a sweep's folder: lost or duplicated trials, wrong early-stopping decisions, wrong checkpoints."""
    from tune.run.verify import verify as verify_run

    result = read_run(run)
    checks = verify_run(result)
    logger.info(summary_line(result))
    for name, findings in checks.items():
        logger.info(f"{'ok   ' if not findings else 'WRONG'}  {name}")
        for finding in findings:
            logger.info(f"         {finding}")
    if any(checks.values()):
        raise typer.Exit(1)


@app.command(epilog="Example: voxtune best RUN --export best.yaml")
def best(
    run: RunFolder,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many trials to show.")] = 5,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the winner's recipe as YAML.")] = None,
) -> None:
    """List the best trials, and show where the winner's recipe differs from the default one."""
    result = read_run(run)
    print_best(result, top)
    if export is not None:
        export_recipe(result, result.best(), export)


@app.command(epilog="Example: voxtune retrain RUN --epochs 500 --with_val")
def retrain(
    run: RunFolder,
    trial: Annotated[int | None, typer.Option(metavar="N", help="Number of the trial; by default the best.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe as YAML instead of a trial's.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Epochs; by default the sweep's.")] = None,
    with_val: Annotated[bool, typer.Option("--with_val", help="Train on the validation cases too.")] = False,
    name: Annotated[str | None, typer.Option(help="Folder below RUN/retrain.")] = None,
) -> None:
    """Train the winner again from the start, and score it once on the held-out test cases."""
    from tune.retrain import retrain as retrain_trial

    output = retrain_trial(run.resolve(), number=trial, config_file=config, epochs=epochs, with_val=with_val, name=name)
    logger.info(f"model: {TrainingDir(output).best}")


@app.command(epilog="Example: voxtune predict RUN/best/best_model.pth CASE_DIR --out predictions")
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="best_model.pth, or the folder of a training.")],
    cases: Annotated[list[Path], typer.Argument(metavar="CASE_DIR...", help="Folders of cases, or a folder of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for CASE.nii.gz.")],
    labels: Labels = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over the 8 mirrored volumes.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also write CASE.png.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment cases; score those that have a seg file."""
    from trainable.evaluate import score_table
    from trainable.predict import predict_cases

    predictions = predict_cases(checkpoint, cases, out, labels=labels, mirror=mirror, pictures=pictures, device=device)
    if predictions.scores:
        logger.info(score_table(predictions.scores, {name: predictions.parts[name] for name in predictions.scores}))
    logger.info(f"wrote {out}")
    if predictions.failed or predictions.no_case:
        raise InputError(predictions.failures())


@app.command(epilog="Example: voxtune demo --out voxtune_demo")
def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything, new; by default voxtune_demo.")
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Number of trials.")] = None,
) -> None:
    """Run a whole sweep on synthetic cases, in minutes on a laptop's CPU."""
    from tune.demo import run_demo

    run_demo(None if out is None else out.resolve(), trials)
