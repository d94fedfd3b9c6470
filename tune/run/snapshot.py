"""The text files of a run, kept beside its checkpoints on a storage that is a URI, for a sweep to go on elsewhere.

    STORAGE/<name of RUN>/snapshot/   study.yaml, split.json, journal.log, best/config.yaml, trials/*/ but TensorBoard

Only the driver writes it. No storage can be locked: two machines that go on from one snapshot at the same time
overwrite each other's. One that goes on later with an older copy is refused.
"""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pyarrow import fs

from trainable.core.errors import InputError
from trainable.core.workers import run_parallel
from tune.run.results import STUDY_FILE, Run, resolve_checkpoint
from tune.search.journal_file import JOURNAL, complete_lines
from tune.spec.sweep_file import dump, load_sweep_config

SNAPSHOT, PROBE = "snapshot", ".probe"
TRIAL_FILES = ("config.yaml", "metrics.csv", "stdout.log", "error.txt")
FILES = ("split.json", "best/config.yaml", *(f"trials/*/{name}" for name in TRIAL_FILES))
# Last, in the order that they are written in locally: study.yaml names the study of the journal that counts.
FILES_LAST = (JOURNAL, STUDY_FILE)
PERIOD_SECONDS = 30  # seconds between two snapshots while no trial ends
MAX_UPLOADS = 8  # at once


def is_uri(storage: str | None) -> bool:
    """Is it a URI, not a folder?"""
    return storage is not None and "://" in storage


def name_of(run: Run) -> str:
    """The name of a run on its storage: that of the folder that it was launched in."""
    return str(run.config.record.get("name", run.folder.name))


def open_storage(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it.

    Raises:
        InputError: where it is no URI of a storage, or holds a password, which study.yaml would show.
    """
    if "@" in urlsplit(uri).netloc:
        raise InputError("--storage: no keys in the URI, they would be on record; put them into the environment")
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:  # pyarrow's own errors are either
        raise InputError(f"{uri}: no storage: {error}") from None
    return files, path.rstrip("/")


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what a storage answers, or that it does not, into an InputError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"{uri}: {error}; check the bucket, the endpoint and the credentials (for S3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, or ~/.aws)"
        ) from None


def write_file(files: Any, path: str, data: bytes) -> None:
    """Write a file on a storage, whole."""
    if files.type_name == "local":  # file://; on object stores folders are but names
        files.create_dir(path.rpartition("/")[0])
    with files.open_output_stream(path) as stream:
        stream.write(data)


def check_storage(storage: str, name: str, attempts: Sequence[str] | None = None) -> None:
    """Make sure that a storage can be written to and that the snapshot there is none or this run's.

    attempts: those of the run; None for one that is about to start.

    Raises:
        InputError: where it is not so.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise InputError(f"{name}: with a URI as --storage, expected a folder's name of letters, digits, . _ and -")
    files, base = open_storage(storage)
    home, uri = f"{base}/{name}", resolve_checkpoint(storage, name)
    with storage_errors(storage):
        write_file(files, f"{home}/{PROBE}", b"voxtune")
        files.delete_file(f"{home}/{PROBE}")
        study = f"{home}/{SNAPSHOT}/{STUDY_FILE}"
        if files.get_file_info(study).type == fs.FileType.NotFound:
            return
        there = yaml.safe_load(files.open_input_stream(study).read())["record"]["attempts"]
    if attempts is None:
        raise InputError(
            f"{uri} holds a sweep already; go on with it by `{resume_from_command(uri)}`, name --out otherwise, or delete it"
        )
    if other := [attempt for attempt in there if attempt not in attempts]:
        raise InputError(
            f"the snapshot {uri} has gone on elsewhere ({other[-1]}), this folder has not; go on from it by "
            f"`{resume_from_command(uri)}`, or delete {SNAPSHOT}/ there to go on from this folder"
        )


def resume_from_command(uri: str) -> str:
    """What to type to go on from a snapshot."""
    return f"voxtune resume FOLDER --from {shlex.quote(uri)} --data DATA"


def restore_snapshot(uri: str, run_dir: Path) -> None:
    """Make a run's folder from the snapshot at STORAGE/NAME, on that storage wherever the snapshot says it was.

    RUN/best is left out: it is made again, with its model.

    Raises:
        InputError: where the folder is not empty, or where no snapshot is.
    """
    if run_dir.exists() and any(run_dir.iterdir()):
        raise InputError(
            f"{run_dir} is not empty; --from needs a new folder; go on with this by `voxtune resume {run_dir}`"
        )
    address, mark, query = uri.partition("?")
    storage, _, name = address.rstrip("/").rpartition("/")
    if not is_uri(storage) or not name:
        raise InputError(f"--from {uri}: expected STORAGE/NAME as `voxtune launch` printed it, such as s3://bucket/RUN")
    storage += mark + query
    files, base = open_storage(storage)
    place = f"{base}/{name}/{SNAPSHOT}"
    with storage_errors(uri):
        listing = files.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
    found = {info.path.removeprefix(place + "/"): info for info in listing if info.type == fs.FileType.File}
    if not found.keys() >= set(FILES_LAST):
        raise InputError(f"--from {uri}: no snapshot there; expected STORAGE/NAME as `voxtune launch` printed it")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run_dir.parent, prefix=f".{run_dir.name}-") as aside, storage_errors(uri):
        new = Path(aside) / run_dir.name
        for path in (path for path in found if not path.startswith("best/")):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(files.open_input_stream(found[path].path).read())
        config = load_sweep_config(new / STUDY_FILE)
        record = {**config.record, "storage": storage, "name": name}
        (new / STUDY_FILE).write_text(dump(config.model_copy(update={"record": record})))
        new.replace(run_dir)
    print(f"{run_dir}: {len(found)} files of {uri}, as of {found[JOURNAL].mtime.astimezone():%Y-%m-%d %H:%M:%S}")


class Snapshot:
    """Keeps the text files of a run on its storage; nothing where that is a folder."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        """say: prints a line."""
        self.folder, self.say = run.folder, say
        self.uri = resolve_checkpoint(run.storage, name_of(run)) if is_uri(run.storage) else ""
        self.sent: dict[Path, tuple[int, int]] = {}  # size and time of each file when it was sent
        self.tried, self.failing = 0.0, False
        if self.uri:
            self.files, base = open_storage(run.storage)
            self.place = f"{base}/{name_of(run)}/{SNAPSHOT}"

    def begin(self) -> None:
        """Make the first snapshot of a launch or resume, and say where it is.

        Raises:
            InputError: where that fails.
        """
        if self.uri:
            with storage_errors(self.uri):
                self.upload()
            self.say(f"snapshots: {self.uri}\nto go on from them on another machine: {resume_from_command(self.uri)}")

    def due(self) -> bool:
        """Is it time for another, though no trial has ended?"""
        return bool(self.uri) and time.monotonic() - self.tried >= PERIOD_SECONDS

    def update(self) -> bool:
        """Bring it up to date; False where that failed, which is said once until it works again."""
        try:
            self.upload()
        except (OSError, ValueError) as error:  # pyarrow's own errors are either
            if not self.failing:
                self.say(f"{self.uri}: the snapshot is not up to date, the sweep goes on: {error}")
            self.failing = True
            return False
        if self.failing:
            self.say(f"{self.uri}: the snapshot is up to date again")
        self.failing = False
        return True

    def upload(self) -> None:
        """Send the files that have changed since they were sent."""
        if not self.uri:
            return
        self.tried = time.monotonic()
        journal = self.folder / JOURNAL
        state, entries = (
            file_stamp(journal),
            complete_lines(journal.read_bytes()),
        )  # first: the other files know no less
        texts = [path for pattern in FILES for path in sorted(self.folder.glob(pattern))]
        run_parallel(self.send, [path for path in texts if self.changed(path)], workers=MAX_UPLOADS, threads=True)
        if self.sent.get(journal) != state:
            self.write(journal, state, entries)
        if self.changed(self.folder / STUDY_FILE):
            self.send(self.folder / STUDY_FILE)
        self.tried = time.monotonic()

    def changed(self, path: Path) -> bool:
        """Has a file changed since it was sent?"""
        return self.sent.get(path) != file_stamp(path)

    def send(self, path: Path) -> None:
        """Send one file."""
        self.write(path, file_stamp(path), path.read_bytes())

    def write(self, path: Path, state: tuple[int, int], data: bytes) -> None:
        """Write what a file held, and note the state that it was read in."""
        write_file(self.files, f"{self.place}/{path.relative_to(self.folder).as_posix()}", data)
        self.sent[path] = state


def file_stamp(path: Path) -> tuple[int, int]:
    """What tells that a file has changed."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
