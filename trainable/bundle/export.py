"""Write a trained model as a bundle of MONAI: a folder that predicts without voxtune, with its model card."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainable.bundle.configs import LOGGING, inference, metadata
from trainable.bundle.contents import (
    CARD,
    CASES,
    DATA_LICENSE,
    FOLDERS,
    INFERENCE,
    LICENSE,
    LOGGING_CONF,
    METADATA,
    SCRIPT,
    WEIGHTS,
    check_files,
    files_beside,
    is_bundle,
    write_record,
)
from trainable.bundle.model_card import ModelFacts, model_card
from trainable.bundle.network import save_network, trace_networks
from trainable.bundle.recorded_scores import DICE, RecordedScores, recorded_scores
from trainable.cases.labels import labels_of_checkpoint
from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.core.options import option_names, path_options, to_dict, words_of
from trainable.core.package_version import version
from trainable.data.split import PARTS
from trainable.model.unet3d import UNet3D
from trainable.postprocess_record import Record, read_record
from trainable.training.ensemble import Ensemble, find_models, load_ensemble
from trainable.training.seen_cases import History

NOT_STATED = "not stated"
SAME = ("target_shape", "overlap", "mirror", "amp", "batch_size")  # what all networks of a bundle must have alike
LICENSE_TEXT = """\
scripts/ and configs/ were written by voxtune, under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

Authors of the model: {authors}
Licence of the weights in models/: not stated here. Whoever publishes them states it in place of this line, having
checked what the licence of the data allows.
"""
DATA_LICENSE_TEXT = """\
The network was trained on cases that voxtune read from a folder; it does not know their source or their licence.
Whoever publishes the model states both in place of this text. The bundle contains no image and no label of a
case{names}.
"""


def export_bundle(
    model: Path, out: Path, *, authors: str = "", confirmed: str = "", with_case_names: bool = False
) -> Path:
    """Write the model of a training or an ensemble as a bundle, and return its folder.

    The bundle appears whole or not at all. It has no paths, and names of cases only if asked for.

    Args:
        model: the folder of a training or an ensemble, or a checkpoint.
        out: folder of the bundle; new, empty, or an earlier bundle as it was exported, which is replaced.
        authors: of the model.
        confirmed: what a confirmation says of its recipe, in words; "" if there is none.
        with_case_names: write the names of the cases with their scores, as docs/cases.csv and in voxtune.json.

    Raises:
        InputError: if the folder is in use for something else, the model cannot be found, its networks cannot predict
            together in MONAI, or a file cannot be written.
    """
    out = out.resolve()  # "." has no name
    refuse_other_folder(out)
    ensemble = load_ensemble(find_models([model]), torch.device("cpu"))
    refuse_different(ensemble)
    scores = recorded_scores(model, ensemble) if model.is_dir() else []
    facts = facts_of(model, ensemble, scores, confirmed, with_case_names=with_case_names)
    draft = out.with_name(f".{out.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for name in FOLDERS:
            (draft / name).mkdir(parents=True)
        write_files(draft, ensemble, facts, authors or NOT_STATED)
        write_record(draft, about(facts, ensemble))
        replace_folder(draft, out)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}); choose another --bundle") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info(f"wrote {out}: {counted(facts.networks, 'network')}; card: {out / CARD}")
    for part, what in (("val", "validation"), ("test", "test")):
        if not any(one.part == part for one in scores):
            logger.info(f"the card has no {what} scores, as the folder of the model has none of these weights")
    return out


def replace_folder(draft: Path, out: Path) -> None:
    """Rename a folder to `out`, in place of what is there, which is renamed first and then removed."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def refuse_other_folder(out: Path) -> None:
    """Raise InputError if a path is a file, or a folder with something that is no bundle of voxtune."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give --bundle the name of a folder")
    if out.is_dir() and not is_bundle(out) and any(out.iterdir()):
        raise InputError(f"{out} has files that are of no bundle; give --bundle a new folder")
    if is_bundle(out) and (lost := [*check_files(out), *files_beside(out)]):
        raise InputError(
            f"{out} is a bundle with {counted(len(lost), 'file')} that would be lost: {lost[0]}; move what you need, "
            "or give --bundle a new folder"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it, or choose another place for --bundle")


def refuse_different(ensemble: Ensemble) -> None:
    """Raise InputError if the networks run differently: MONAI runs them on the same windows."""
    first = ensemble.first
    for member in ensemble.members[1:]:
        for name in SAME:
            one, other = getattr(first.config, name), getattr(member.config, name)
            if one != other:
                raise InputError(
                    f"{first.checkpoint} and {member.checkpoint} differ in {name}, {one} and {other}: one bundle runs "
                    "all its networks alike; export them one by one"
                )


def facts_of(
    model: Path, ensemble: Ensemble, scores: Sequence[RecordedScores], confirmed: str, *, with_case_names: bool
) -> ModelFacts:
    """Return what the card says of a model."""
    state = ensemble.first.state
    config = ensemble.first.config
    if "grid" not in state:
        raise InputError(f"{ensemble.first.checkpoint} is of an older version and does not say its voxel size; retrain")
    contents = contents_by_part(ensemble)
    recipe, *others = [portable_options(member.config) for member in ensemble.members]
    return ModelFacts(
        name=model.resolve().name if model.is_dir() else model.stem,
        config=config,
        labels=labels_of_checkpoint(state),
        networks=len(ensemble.members),
        spacing=state["grid"]["spacing"],
        resampled=state["grid"]["resample"],
        recipe=recipe,
        differing=[name for name, value in recipe.items() if any(other[name] != value for other in others)],
        parts={part: len(found) for part, found in contents.items()},
        data={part: digest(found) for part, found in contents.items()},
        splits=sorted({member.state["split"] for member in ensemble.members}),
        scores=scores,
        postprocess=current_record(model, scores),
        confirmed=confirmed,
        versions=state["versions"],
        exporter=version("voxtune"),
        pretrained=pretrained_weights(ensemble),
        stride=max(network.stride for network in networks_of(ensemble)),
        with_case_names=with_case_names,
    )


def current_record(model: Path, scores: Sequence[RecordedScores]) -> Record | None:
    """Return what was tried as post-processing; None if nothing was chosen for this very model."""
    record = read_record(model) if model.is_dir() else None
    used = record is not None and any(one.part == "val" and one.cases == record.scores for one in scores)
    return record if used else None


def contents_by_part(ensemble: Ensemble) -> dict[str, list[str]]:
    """Return the content hashes of the cases that any network had in each part, sorted."""
    states = [member.state.get("cases", {}) for member in ensemble.members]
    return {part: sorted({c for cases in states for c in cases.get(part, {}).values()}) for part in PARTS}


def digest(contents: Sequence[str]) -> str:
    """Return 12 hex digits of the content hashes of cases; their names do not matter."""
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]


def portable_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options of a training without those of one machine or folder: paths, the device and the like."""
    left_out = {*option_names(role="run", exported=False), *path_options()}
    if config.split_file is not None:  # these were of no effect
        left_out |= {"val_fraction", "test_fraction", "folds", "fold"}
    if str(config.labels) in words_of("labels"):
        left_out.discard("labels")
    return {name: value for name, value in to_dict(config).items() if name not in left_out}


def pretrained_weights(ensemble: Ensemble) -> str:
    """Return the weights that the trainings started from, in words; "" if they started from none."""
    names = sorted({member.config.pretrained.name for member in ensemble.members if member.config.pretrained})
    if not names:
        return ""
    known = all(History.before(member.state).complete for member in ensemble.members)
    return f"{', '.join(names)}{'' if known else ', of which it is not known which cases they had seen'}"


def networks_of(ensemble: Ensemble) -> list[UNet3D]:
    """Return the networks."""
    return [member.predictor.network for member in ensemble.members if isinstance(member.predictor.network, UNet3D)]


def write_files(draft: Path, ensemble: Ensemble, facts: ModelFacts, authors: str) -> None:
    """Write all files but voxtune.json into the folder of a bundle."""
    networks = networks_of(ensemble)
    save_network(trace_networks(networks), draft / SCRIPT, draft / WEIGHTS)
    means = {f"{one.part}_{name}": round(value, 6) for one in facts.scores for name, value in one.means.items()}
    note = "Scores are those in eval_metrics." if means else "It has not been scored."
    described = metadata(
        facts.name, facts.config, facts.labels, networks=len(networks), authors=authors, means=means, task_note=note
    )
    write_json(draft / METADATA, described)
    write_json(draft / INFERENCE, inference(facts.config, facts.labels, facts.spacing))
    atomic_write_text(draft / LOGGING_CONF, LOGGING)
    atomic_write_text(draft / CARD, model_card(facts))
    atomic_write_text(draft / LICENSE, LICENSE_TEXT.format(authors=authors))
    atomic_write_text(
        draft / DATA_LICENSE, DATA_LICENSE_TEXT.format(names="" if facts.with_case_names else " nor its name")
    )
    for source in sorted((Path(__file__).parent / "scripts").glob("*.py")):
        shutil.copyfile(source, draft / "scripts" / source.name)
    if facts.with_case_names:
        atomic_write_text(draft / CASES, case_table(facts.scores))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a config as JSON."""
    atomic_write_text(path, json.dumps(content, indent=4) + "\n")


def case_table(scores: Sequence[RecordedScores]) -> str:
    """Return docs/cases.csv: the recorded scores of each case, by name."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "part", *DICE])
    for one in scores:
        writer.writerows([name, one.part, *(one.cases[name][key] for key in DICE)] for name in sorted(one.cases))
    return table.getvalue()


def about(facts: ModelFacts, ensemble: Ensemble) -> dict[str, Any]:
    """Return what voxtune.json says besides the hashes of the files."""
    return {
        "voxtune": facts.exporter,
        "name": facts.name,
        "checkpoints": [member.digest for member in ensemble.members],
        "recipe": dict(facts.recipe),
        "labels": facts.labels.plain(),
        "grid": {"spacing": list(facts.spacing), "resample": facts.resampled},
        "data": dict(facts.data),
        "splits": list(facts.splits),
        "confirmed": facts.confirmed,
        "scores": {one.part: one.for_record(with_names=facts.with_case_names) for one in facts.scores},
    }
