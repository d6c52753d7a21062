"""Strict validation of files that users write. Slow to import because of pydantic: import it where such a file is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from .errors import InputError, Problem
from .names import MAX_NAME_LENGTH, NAME_RULE, is_name, shortened

RecordT = TypeVar("RecordT")
_ADAPTERS: dict[type, pydantic.TypeAdapter[Any]] = {}  # building one takes a few milliseconds


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(NAME_RULE)
    return text


Name = Annotated[str, pydantic.AfterValidator(_name)]  # of a model, machine or version; see `base.names`


def _line(text: str) -> str:
    if len(text) > MAX_NAME_LENGTH or not text.isprintable():
        raise ValueError(f"at most {MAX_NAME_LENGTH} printable characters on one line")
    return text


Line = Annotated[str, pydantic.AfterValidator(_line)]  # a description; may be empty


class StrictModel(pydantic.BaseModel):
    """Base of records that exist only in files: no unknown keys, no type conversion, no NaN, immutable.

    Validators are built on first use, which keeps start-up fast.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def validate_mapping(record: type[RecordT], raw: object, where: str | Path) -> RecordT:
    """Validate the content of a YAML or JSON file.

    Validation goes through JSON text. Strict validation of Python objects would accept only instances of a nested dataclass;
    strict validation of JSON accepts the mappings that files contain.

    Args:
        record: The dataclass or pydantic model of the file.
        raw: Parsed content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    if record not in _ADAPTERS:
        _ADAPTERS[record] = pydantic.TypeAdapter(record)
    adapter: pydantic.TypeAdapter[RecordT] = _ADAPTERS[record]
    try:
        return adapter.validate_json(json.dumps(raw), strict=True)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None


def from_pydantic(error: pydantic.ValidationError, where: str | Path) -> InputError:
    """Convert all problems of a pydantic error to one `InputError` about the file `where`."""
    return InputError(*(problem for detail in error.errors() for problem in _problems(detail, str(where))))


def _problems(detail: ErrorDetails, where: str) -> Iterator[Problem]:
    key = ".".join(str(part) for part in detail["loc"])
    found, kind = detail["input"], detail["type"]
    inner = detail.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        for problem in inner.problems:
            yield Problem(where, ".".join(filter(None, (key, problem.key))), problem.expected, problem.found)
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        yield Problem(where, key, "no such key", repr(found))
    elif kind == "missing":
        yield Problem(where, key, "a value", "nothing")
    else:
        expected = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if kind in ("model_type", "dataclass_type"):
            expected = "a mapping"
        if isinstance(found, str) and kind in ("float_type", "int_type") and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", found):
            expected += " (YAML reads 4.8e12 and 3e-6 as text: write 4.8e+12 and 3.0e-6)"
        yield Problem(where, key, expected, f"{_short(found)} ({type(found).__name__})")


def _short(found: object) -> str:
    return shortened(repr(found), 80)
