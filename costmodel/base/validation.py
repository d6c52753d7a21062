"""Strict validation of files that users write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pydantic

from .errors import from_pydantic

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


class StrictModel(pydantic.BaseModel):
    """Base of everything read from files: no unknown keys, no type conversion, no NaN, immutable.

    Validators are built on first use, which keeps start-up fast.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def validate_mapping(model: type[ModelT], raw: Mapping[str, object], where: str | Path) -> ModelT:
    """Validate the mapping parsed from a YAML file.

    Validation goes through JSON text. Strict validation of Python objects would accept only instances of a nested dataclass;
    strict validation of JSON accepts the mappings that YAML contains.

    Args:
        model: The pydantic model of the file.
        raw: Content of the file. Dates become ISO strings.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    try:
        return model.model_validate_json(json.dumps(raw, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
