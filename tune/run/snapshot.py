"""A copy of a run's text files next to its checkpoints on a storage that is a URI, to resume the sweep elsewhere.

    STORAGE/<name of RUN>/snapshot/   study.yaml, split.json, cases.json, journal.log, events.jsonl,
                                      best/config.yaml, suggestions/, trials/*/ but TensorBoard

Only the driver writes it. No storage can be locked: two machines that go on from one snapshot at the same time
overwrite each other's. A machine that goes on later with an older copy is refused.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from trainable.core.errors import InputError
from trainable.core.files import atomic_write
from trainable.core.logger import logger
from trainable.core.parallel import run_parallel
from trainable.core.storage import is_uri, open_storage, read_file, refuse_credentials, storage_errors
from tune.run.results import Run, read_run, resolve_checkpoint
from tune.run.run_dir import RunDir, TrialDir, resume_command
from tune.search.journal_file import complete_lines
from tune.spec.sweep_file import dump, load_sweep_config

SNAPSHOT, PROBE = "snapshot", ".probe"
NAMES = RunDir(Path())  # relative to any run
OF_ANY_TRIAL = TrialDir(NAMES.trials / "*")
FILES = (
    *(NAMES.split, NAMES.contents, NAMES.events, NAMES.best_config, NAMES.suggestions / "*.yaml"),
    *(OF_ANY_TRIAL.config, OF_ANY_TRIAL.metrics, OF_ANY_TRIAL.case_scores, OF_ANY_TRIAL.stdout, OF_ANY_TRIAL.error),
)
# Last, in the order in which they are written locally: study.yaml names the study of the journal that counts.
FILES_LAST = (NAMES.journal, NAMES.config)
PERIOD_SECONDS = 30  # between two snapshots while no trial ends
MAX_UPLOADS = 8  # at once


def name_of(run: Run) -> str:
    """Return the name of a run on its storage: its folder's name at launch, or its present one if none is recorded."""
    return run.config.record.name or run.folder.name


def write_file(files: Any, path: str, data: bytes) -> None:
    """Write a whole file on a storage, in place of an old one."""
    if files.type_name == "local":  # file://; object stores have no folders to make, and no half files
        files.create_dir(path.rpartition("/")[0])
        atomic_write(Path(path), lambda file: file.write(data))
        return
    with files.open_output_stream(path) as stream:
        stream.write(data)


def check_storage(storage: str, name: str, attempts: Sequence[str] | None = None) -> None:
    """Make sure that a storage can be written to, and that it has no snapshot of this name, or one of this run.

    Args:
        storage: a URI.
        name: of the run on the storage.
        attempts: those of the run; None for a run that is about to start, which must have no snapshot yet.

    Raises:
        InputError: if the storage or the name cannot be used, or if the snapshot has an attempt that the run lacks, so
            that it has gone on elsewhere.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise InputError(f"{name}: with a URI as --storage, expected a folder's name of letters, digits, . _ and -")
    files, base = open_storage(storage)
    folder, uri = f"{base}/{name}", resolve_checkpoint(storage, name)
    with storage_errors(storage):
        write_file(files, f"{folder}/{PROBE}", b"voxtune")
        files.delete_file(f"{folder}/{PROBE}")
        config = f"{folder}/{SNAPSHOT}/{NAMES.config}"
        if files.get_file_info(config).type == fs.FileType.NotFound:
            return
        text = read_file(files, config)
    stored = attempts_in(text, f"{uri}/{SNAPSHOT}/{NAMES.config}")
    if attempts is None:
        raise InputError(
            f"{uri} holds a sweep already; go on with it by `{resume_from_command(uri)}`, choose another --out name, "
            "or delete it"
        )
    if other := [attempt for attempt in stored if attempt not in attempts]:
        raise InputError(
            f"the snapshot {uri} has gone on elsewhere ({other[-1]}), this folder has not; go on from it by "
            f"`{resume_from_command(uri)}`, or delete {SNAPSHOT}/ there to go on from this folder"
        )


def attempts_in(text: bytes, place: str) -> list[str]:
    """Return the attempts in the study.yaml of a snapshot; raise InputError that names its place if it is damaged."""
    try:
        attempts: list[str] = yaml.safe_load(text)["record"]["attempts"]
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError):
        raise InputError(
            f"{place} is damaged, as by an upload that was cut off: delete it to go on from this folder"
        ) from None
    return attempts


def resume_from_command(uri: str) -> str:
    """Return the command that goes on from the snapshot at a URI, with FOLDER and DATA to be filled in."""
    return f"voxtune resume FOLDER --from {shlex.quote(uri)} --data DATA"


def restore_snapshot(uri: str, run_dir: Path) -> None:
    """Make a run's folder from a snapshot; the run then continues on the snapshot's storage.

    RUN/best is left out: a resume makes it again, with its model; and so are the folders of trials that its journal
    does not have yet.

    Args:
        uri: STORAGE/NAME of the snapshot.
        run_dir: a folder that does not exist or is empty.

    Raises:
        InputError: if the folder is not empty, if the URI cannot be read, or if it has no snapshot.
    """
    refuse_credentials(uri)
    if run_dir.exists() and any(run_dir.iterdir()):
        raise InputError(
            f"{run_dir} is not empty; --from needs a new folder; go on with this one by `{resume_command(run_dir)}`"
        )
    address, mark, query = uri.partition("?")
    storage, _, name = address.rstrip("/").rpartition("/")
    if not is_uri(storage) or not name:
        raise InputError(f"--from {uri}: expected STORAGE/NAME as `voxtune launch` printed it, such as s3://bucket/RUN")
    storage += mark + query
    files, base = open_storage(storage)
    folder = f"{base}/{name}/{SNAPSHOT}"
    with storage_errors(uri):
        listing = files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    stored = {info.path.removeprefix(folder + "/"): info for info in listing if info.type == fs.FileType.File}
    if not stored.keys() >= {path.as_posix() for path in FILES_LAST}:
        raise InputError(f"--from {uri}: no snapshot there; expected STORAGE/NAME as `voxtune launch` printed it")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run_dir.parent, prefix=f".{run_dir.name}-") as temp, storage_errors(uri):
        new = RunDir(Path(temp) / run_dir.name)
        for path in (path for path in stored if not path.startswith(f"{NAMES.best}/")):
            (new.path / path).parent.mkdir(parents=True, exist_ok=True)
            (new.path / path).write_bytes(read_file(files, stored[path].path))
        config = load_sweep_config(new.config).with_record(storage=storage, name=name)
        new.config.write_text(dump(config))
        with suppress(InputError):  # of a damaged journal, which a resume names
            for lost in read_run(new.path, config).orphan_trial_dirs:  # an upload was cut off before its journal
                shutil.rmtree(new.path / lost)
        new.path.replace(run_dir)
    as_of = stored[str(NAMES.journal)].mtime.astimezone()
    logger.info(f"{run_dir}: {len(stored)} files of {uri}, as of {as_of:%Y-%m-%d %H:%M:%S}")


class Snapshot:
    """Keeps a copy of a run's text files on its storage; does nothing if that is a folder."""

    def __init__(self, run: Run) -> None:
        self.folder = run.folder
        self.storage, self.name, self.attempts = run.storage, name_of(run), run.config.record.attempts or None
        self.uri = resolve_checkpoint(run.storage, self.name) if is_uri(run.storage) else ""
        self.sent: dict[Path, tuple[int, int]] = {}  # size and time of each file when it was sent
        self.last_try, self.failing = 0.0, False
        if self.uri:
            self.files, base = open_storage(run.storage)
            self.target = f"{base}/{self.name}/{SNAPSHOT}"

    def begin(self) -> None:
        """Make the first snapshot of a launch or resume, and print its URI.

        Raises:
            InputError: if the storage cannot be written to, or has the snapshot of another run by now.
        """
        if self.uri:
            check_storage(self.storage, self.name, self.attempts)  # anew: preparing cases may take hours
            with storage_errors(self.uri):
                self.upload()
            command = resume_from_command(self.uri)
            logger.info(f"snapshots: {self.uri}\nto go on from them on another machine: {command}")

    def due(self) -> bool:
        """Return whether PERIOD_SECONDS have passed since the last upload or try; False if the storage is a folder."""
        return bool(self.uri) and time.monotonic() - self.last_try >= PERIOD_SECONDS

    def update(self) -> bool:
        """Bring the snapshot up to date.

        Returns:
            False if that failed, which is printed once until it works again. True otherwise, also if the storage is a
            folder.
        """
        try:
            self.upload()
        except (OSError, ValueError) as error:  # pyarrow's own errors are either
            if not self.failing:
                logger.warning(f"{self.uri}: the snapshot is not up to date, the sweep goes on: {error}")
            self.failing = True
            return False
        if self.failing:
            logger.warning(f"{self.uri}: the snapshot is up to date again")
        self.failing = False
        return True

    def upload(self) -> None:
        """Send the files that are new or have changed since they were sent.

        Raises:
            OSError, ValueError: if the storage does not take a file.
        """
        if not self.uri:
            return
        self.last_try = time.monotonic()
        journal, config = (self.folder / path for path in FILES_LAST)
        # The journal is read before the other files, which then know at least what it knows, and is sent after them.
        stamp, entries = file_stamp(journal), complete_lines(journal.read_bytes())
        texts = [path for pattern in FILES for path in sorted(self.folder.glob(pattern.as_posix()))]
        run_parallel(self.send, [path for path in texts if self.changed(path)], workers=MAX_UPLOADS, threads=True)
        if self.sent.get(journal) != stamp:
            self.write(journal, stamp, entries)
        if self.changed(config):
            self.send(config)
        self.last_try = time.monotonic()

    def changed(self, path: Path) -> bool:
        """Return whether a file is new or has changed since it was sent."""
        return self.sent.get(path) != file_stamp(path)

    def send(self, path: Path) -> None:
        """Send one file."""
        self.write(path, file_stamp(path), path.read_bytes())

    def write(self, path: Path, stamp: tuple[int, int], data: bytes) -> None:
        """Write a file's content to the storage, and remember the stamp with which it was read."""
        write_file(self.files, f"{self.target}/{path.relative_to(self.folder).as_posix()}", data)
        self.sent[path] = stamp


def file_stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time in ns: they change when the file does."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
