"""Messages for values that pydantic refuses: what was expected, and what was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from trainable.core.storage import Uri

TYPE_TEXTS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    tuple: "a list",
    dict: "`key: value` lines",
    Path: "a path",
    Uri: "a URI",
}
LIMIT_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class UnexpectedValueError(ValueError):
    """The error of a value that a field's validator refuses; `expectation` makes a message of it.

    Args:
        expected: what the value should be: "one of a, b".
        names: words among the allowed values, for `did_you_mean`.
    """

    def __init__(self, expected: str, names: Sequence[str] = ()) -> None:
        super().__init__(expected)
        self.names = names


def expectation(error: ErrorDetails, field: FieldInfo) -> str:
    """Return what a refused value of a field should have been: "a number > 0", "one of adam, sgd (did you mean sgd?)".

    That is the text of the ValueError if a validator raised one, else what the field's annotation and limits allow. If
    the value is close to an allowed word, that word is added.
    """
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        text, names = str(cause), getattr(cause, "names", ())
    else:
        text, names = allowed_values(field), list(literals(field.annotation))
    return text + did_you_mean(str(error["input"]), names)


def error_text(error: ErrorDetails) -> str:
    """Return the text of the ValueError if a validator raised one, else pydantic's own message."""
    return str(error.get("ctx", {}).get("error", error["msg"]))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X?)" with the closest of `names` if one is close to `name`, else ""."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def allowed_values(field: FieldInfo) -> str:
    """Return what a field's value may be: "one of adam, adamw, sgd", "a number > 0"."""
    return _describe(field.annotation, field.metadata)


def _describe(kind: Any, metadata: Sequence[Any]) -> str:
    """Return what a value of a type may be; metadata: its limits, as pydantic keeps them."""
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is Annotated:
        kind, *notes = arguments
        inner = [limit for note in notes for limit in (note.metadata if isinstance(note, FieldInfo) else [note])]
        return _describe(kind, [*metadata, *inner])
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument, metadata) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(arguments)
    if origin is tuple and ... in arguments:
        return f"a list, each {_describe(arguments[0], metadata)}"
    if origin is tuple:
        return f"{len(arguments)} {'whole numbers' if arguments[0] is int else 'numbers'}"
    limits = [
        f"{sign} {getattr(limit, key)}"
        for key, sign in LIMIT_SIGNS.items()
        for limit in metadata
        if getattr(limit, key, None) is not None
    ]
    return " ".join([TYPE_TEXTS[origin or kind], " and ".join(limits)]).strip()


def literals(kind: Any) -> Iterator[str]:
    """Yield the words that a type allows."""
    for argument in get_args(kind):
        if isinstance(argument, str):
            yield argument
        else:
            yield from literals(argument)
