"""A TensorBoard file, written at each call.

torch's SummaryWriter writes it in a separate thread; that took a tenth of the time of a sweep's driver, which writes
one file per trial.
"""

from __future__ import annotations

import io
import itertools
import os
import platform
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from trainable.core.files import atomic_write

FILE_NUMBERS = itertools.count()  # of this process, which may begin several files in one second; they are read by name


class Board:
    """One event file, made at once in a folder.

    Args:
        folder: whose path below the folder that TensorBoard reads is the run's name there; made if missing. It may
            contain files of earlier processes.
        step: the first step. Entries of earlier files at this step or later are discarded by TensorBoard: the training
            went back.
    """

    def __init__(self, folder: Path, step: int) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(FILE_NUMBERS):06d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self.append(Event(file_version="brain.Event:2"), Event(step=step, session_log=SessionLog(status="START")))

    def add(self, step: int, scalars: Mapping[str, float], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Add a step's numbers and pictures, RGB uint8 (height, width, 3), by their names in TensorBoard."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        values += [Summary.Value(tag=name, image=encode_png(rgb)) for name, rgb in images.items()]
        self.add_values(step, *values)

    def add_values(self, step: int, *values: Summary.Value) -> None:
        """Add entries of a step."""
        self.append(Event(step=step, summary=Summary(value=values)))

    def append(self, *events: Event) -> None:
        """Append events; the wall_time of each is set to the current time."""
        with self.path.open("ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())

    def drop_from_earlier(self, *tags: str) -> None:
        """Take the entries of these names out of the folder's other files: of several, TensorBoard shows the first."""
        for path in self.path.parent.glob("events.out.tfevents.*"):
            if path != self.path:
                drop_entries(path, tags)


def drop_entries(path: Path, tags: Collection[str]) -> None:
    """Take the records that have an entry of these names out of an event file."""
    records = split_records(path.read_bytes())
    kept = [record for record in records if not tags_in(record).intersection(tags)]
    if len(kept) < len(records):
        atomic_write(path, lambda file: file.writelines(kept), fsync=False)


def split_records(data: bytes) -> list[bytes]:
    """Return the records of an event file; half a record at its end, which a kill has left, counts as one."""
    records, place = list[bytes](), 0
    while place < len(data):  # 8 bytes of length, 4 of a checksum, the event, 4 of a checksum
        end = place + 16 + int.from_bytes(data[place : place + 8], "little")
        records.append(data[place:end])
        place = end
    return records


def tags_in(record: bytes) -> set[str]:
    """Return the names of the entries in a record of an event file; none if it is damaged."""
    try:
        return {value.tag for value in Event.FromString(record[12:-4]).summary.value}
    except DecodeError:
        return set()


def encode_png(rgb: NDArray[np.uint8]) -> Summary.Image:
    """Return a picture, RGB uint8 (height, width, 3), as PNG."""
    png = io.BytesIO()
    Image.fromarray(rgb).save(png, format="PNG")
    height, width, channels = rgb.shape
    return Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue())
