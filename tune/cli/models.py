"""The verbs that train and use models."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from trainable.core.console import terminal_width
from trainable.core.errors import InputError
from trainable.core.logger import logger, outlive_reader
from trainable.core.signals import handle_end_signals
from trainable.core.storage import place_of_data
from trainable.training.training_dir import TrainingDir
from tune.cli.command import Address, Labels, RunFolder, app
from tune.cli.json_flag import Json, messages_on_stderr, print_json
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.spec.sections import read_duration
from tune.spec.sweep_file import RUN_CONFIG


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


@app.command(epilog="Example: voxtune confirm RUN --top 3 --seeds 4")
def confirm(
    run: RunFolder,
    top: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Best trials that are compared with the default recipe (3).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trainings of each recipe at most, per fold (4).")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=0, help="Divide the train and val cases into K new folds; 0: keep the sweep's split."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Epochs; by default the sweep's.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Stop after a time such as 6h or 90m.")] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", metavar="FILE", help="Also compare this recipe, a YAML or nnunet; repeatable."),
    ] = None,
    take_best: Annotated[
        bool,
        typer.Option("--take_best", "--take-best", help="Choose the best trial though not shown to be better."),
    ] = False,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Train the best recipes and the default again with new seeds, and say whether the winner is better."""
    from tune.confirm import confirm as confirm_winner

    with messages_on_stderr(json_), outlive_reader(f"the confirmation goes on, see {run.resolve() / 'confirm'}"):
        found = confirm_winner(
            run.resolve(),
            top=top,
            seeds=seeds,
            folds=folds,
            epochs=epochs,
            budget=None if budget is None else read_duration("--budget", budget),
            recipes=recipe or (),
            take_best=take_best,
            address=address,
        )
    if json_:
        from tune.analysis.json_output.confirm import confirm_output

        print_json(confirm_output(read_run(run.resolve()), found))


@app.command(epilog="Example: voxtune retrain RUN --epochs 500 --with_val")
def retrain(
    run: RunFolder,
    trial: Annotated[int | None, typer.Option(metavar="N", help="Number of the trial; by default the best.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe as YAML instead of a trial's.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Epochs; by default the sweep's.")] = None,
    with_val: Annotated[bool, typer.Option("--with_val", help="Train on the validation cases too.")] = False,
    folds: Annotated[
        int | None,
        typer.Option(metavar="K", min=2, help="Train an ensemble by cross-validation of the train and val cases."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Train an ensemble: N trainings, with --folds of each fold.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder below RUN/retrain.")] = None,
    gpus: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="GPUs of this machine that train the model together; a step is divided."),
    ] = 1,
    nodes: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Nodes of the cluster at --address that do so, each with --gpus GPUs."),
    ] = 1,
    address: Address = None,
) -> None:
    """Train the winner again from the start, or an ensemble of it, and score it once on the held-out test cases."""
    if folds is not None or seeds is not None:
        if gpus > 1 or nodes > 1:
            raise InputError("--gpus and --nodes are of a single model: the trainings of an ensemble take a GPU each")
        from tune.ensemble_retrain import EnsembleRequest, retrain_ensemble

        request = EnsembleRequest(folds or 0, seeds or 1, trial, config, epochs, with_val, name)
        with outlive_reader(f"the retraining goes on, see {run.resolve() / 'retrain'}"):
            logger.info(f"ensemble: {retrain_ensemble(run.resolve(), request, address=address)}")
        return
    if address is not None and nodes == 1:
        raise InputError("--address is of --nodes, --folds and --seeds: without them this machine retrains one model")
    from tune.retrain import retrain as retrain_trial
    from tune.run.results import read_run
    from tune.terminal.retrained import print_retrained

    output = retrain_trial(
        run.resolve(), number=trial, config_file=config, epochs=epochs, with_val=with_val, name=name, gpus=gpus,
        nodes=nodes, address=address,
    )  # fmt: skip
    print_retrained(read_run(run.resolve()), TrainingDir(output), gpus * nodes)


@app.command(epilog="Example: voxtune predict RUN/best/best_model.pth CASE_DIR --out predictions")
def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="best_model.pth, or the folder of a training or of an ensemble, as RUN/retrain/NAME.")
    ],
    cases: Annotated[list[Path], typer.Argument(metavar="CASE_DIR...", help="Folders of cases, or a folder of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for CASE.nii.gz.")],
    member: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Another model, whose probabilities are averaged too; repeatable."),
    ] = None,
    labels: Labels = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over the 8 mirrored volumes.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also write CASE.png.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment cases; score those that have a seg file."""
    if (checkpoint / RUN_CONFIG).exists():
        raise InputError(
            f"{checkpoint} is the folder of a sweep; predict with {RunDir(checkpoint).best}, its winner, or with a "
            f"retrained model, {RunDir(checkpoint).retrain / 'NAME'}"
        )
    from trainable.evaluate import score_table
    from trainable.predict import predict_cases

    predictions = predict_cases(
        checkpoint,
        cases,
        out,
        members=member or (),
        labels=labels,
        mirror=mirror,
        pictures=pictures,
        device=device,
    )
    if predictions.scores:
        parts = {name: predictions.parts[name] for name in predictions.scores}
        logger.info(score_table(predictions.scores, parts, terminal_width()))
    if predictions.members:
        logger.info(predictions.members)
    logger.info(f"wrote {out}")
    if predictions.failed or predictions.no_case:
        raise InputError(predictions.failures())


@app.command(epilog="Example: voxtune postprocess RUN/retrain/final")
def postprocess(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="RUN/retrain/NAME, or the folder of a training.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where the cases are, a folder or a URI, if they have moved since the training."
        ),
    ] = None,
) -> None:
    """Choose mirroring, overlap and clean-up of a model's predictions by its validation cases, never by test cases."""
    from trainable.postprocess import choose_postprocessing

    choose_postprocessing(model, None if data is None else place_of_data(data))


@app.command(epilog="Example: voxtune demo --out voxtune_demo")
def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything, new; by default voxtune_demo.")
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of trials.")] = None,
) -> None:
    """Run a whole sweep on synthetic cases, in minutes on a laptop's CPU."""
    from tune.demo import run_demo

    run_demo(None if out is None else out.resolve(), trials)
