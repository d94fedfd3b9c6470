"""Object stores and other file systems that are named by a URI, such as s3://bucket/folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from trainable.core.errors import InputError
from trainable.core.files import user_path

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import core_schema


SECRET_NAME = re.compile(r"secret|key|token|passw|pwd|credential|signature|^sig$", re.IGNORECASE)  # in a query
USER_AND_KEY = re.compile(r":.*@", re.DOTALL)  # to the last @: a key may have any character in it, / too
NAMES_BEFORE_AT = ("abfs", "abfss")  # schemes that have the container before the @
EXAMPLES = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER"
OPTIONS_WITH_URI = "--data (train.data_dir), --storage or --from"


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


def refuse_uri(path: Path, remedy: str) -> None:
    """Raise InputError for a path that was made from a URI, without showing keys in it.

    pathlib makes s3:/bucket/cases of s3://bucket/cases.

    remedy: what to do, at the end of the message.
    """
    scheme, found, rest = str(path).partition(":/")
    if found and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        uri = without_keys(f"{scheme}://{rest}")
        raise InputError(f"{uri}: a URI, not a folder: {remedy}")


def is_there(place: Path | Uri) -> bool:
    """Return whether a folder exists; True for a URI, which is not tried."""
    return isinstance(place, Uri) or place.is_dir()


def refuse_credentials(uri: str) -> None:
    """Raise InputError, which shows only its scheme, if a URI contains credentials, which files and logs would show."""
    if has_keys(uri):
        raise InputError(
            f"{scheme_of(uri)}...: no keys in the URI of {OPTIONS_WITH_URI}, as study.yaml and logs would show them; "
            "put them into the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, "
            "GOOGLE_APPLICATION_CREDENTIALS for gs://, AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET for "
            f"abfs://; and write {EXAMPLES}. In the name of a folder : is %3A and @ is %40"
        )


def has_keys(uri: str) -> bool:
    """Return whether a URI has credentials in it, or may have: USER:KEY@, USER@, or a query such as client_secret=."""
    scheme, _, rest = uri.partition("://")
    query = parse_qsl(rest.partition("?")[2], keep_blank_values=True)
    if any(SECRET_NAME.search(name) for name, _ in query):
        return True
    if any(USER_AND_KEY.search(text) for text in (rest, *(value for _, value in query))):
        return True
    return scheme.lower() not in NAMES_BEFORE_AT and re.match(r"[^/?#]*@", rest) is not None


def scheme_of(uri: str) -> str:
    """Return "s3://" of "s3://bucket/folder"; "" of a text that begins otherwise."""
    found = re.match(r"[A-Za-z0-9+.-]+://", uri)
    return found[0] if found else ""


def without_keys(value: Any) -> Any:
    """Return only the scheme of a URI with credentials, and dots, also in a list; any other value as it is."""
    if isinstance(value, list):
        return [without_keys(item) for item in value]
    return f"{scheme_of(value)}..." if isinstance(value, str) and has_keys(value) else value


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
        shown = f"{scheme_of(uri)}..."  # what cannot be read may be keys
        why = str(error).replace(uri, shown).partition("\n")[0]
        raise InputError(
            f"{shown}: no storage: {why}; expected a URI such as {EXAMPLES}; correct {OPTIONS_WITH_URI}"
        ) from None
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
