"""Object stores and other file systems that are named by a URI, such as s3://bucket/folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainable.core.errors import InputError
from trainable.core.files import user_path

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import core_schema


class Uri(str):
    """A text such as s3://bucket/folder, as the value of an option that may also be a path."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Accept a text with ://, and write it as a plain text."""
        from pydantic_core import core_schema  # here: the check of a node does without it

        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(pattern="://"),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )


def is_uri(place: str | Path | None) -> bool:
    """Return True for a URI, False for a folder or None."""
    return isinstance(place, str) and "://" in place


def place_of_data(given: str | Path) -> Path | Uri:
    """Return a place that a user has given: a URI as it is, a folder's path made absolute.

    Raises:
        InputError: as user_path and refuse_credentials.
    """
    if not is_uri(given):
        return user_path(given).resolve()
    refuse_credentials(str(given))
    return Uri(given)


def is_there(place: Path | Uri) -> bool:
    """Return whether a folder exists; True for a URI, which is not tried."""
    return isinstance(place, Uri) or place.is_dir()


def refuse_credentials(uri: str) -> None:
    """Raise InputError, which does not show it, if a URI contains credentials, which files and logs would show."""
    if without_keys(uri) != uri:
        raise InputError("no keys in the URI: study.yaml and logs would show them; put them into the environment")


def without_keys(value: Any) -> Any:
    """Return a URI with stars in place of the credentials in it; any other value as it is."""
    return re.sub(r"^([^/?#]*://)[^/?#]*@", r"\1***@", value) if isinstance(value, str) else value


def open_storage(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path in it.

    Raises:
        InputError: if it is no URI of a storage, or contains credentials.
    """
    from pyarrow import fs  # here: a training on local files does without it

    refuse_credentials(uri)
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:  # pyarrow's own errors are either
        raise InputError(f"{uri}: no storage: {error}") from None
    return files, path.rstrip("/")


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """In this context, turn an OSError or ValueError into an InputError that names the URI."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"{uri}: {error}; check the bucket, the endpoint and the credentials (for S3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, or ~/.aws)"
        ) from None


def list_below(files: Any, path: str, *, recursive: bool = False) -> list[Any]:
    """Return what a storage tells of each file and folder in a folder of it, or with `recursive` below it.

    Raises:
        OSError: if there is none, or it cannot be read.
    """
    from pyarrow import fs

    return list(files.get_file_info(fs.FileSelector(path, recursive=recursive)))


def read_file(files: Any, path: str) -> bytes:
    """Return the content of a file on a storage, of a compressed one as it is there."""
    with files.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())
