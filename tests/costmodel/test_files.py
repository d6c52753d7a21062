"""Reading and validating files of users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.files import read_text
from magicdec.costmodel.base.records import STRICT, Limits, to_document
from magicdec.costmodel.base.validation import StrictModel, validate_mapping


class Box(StrictModel):
    width: float
    label: str = ""


def test_a_text_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "marked.txt"
    file.write_text("content", encoding="utf-8-sig")
    assert read_text(file, "note", encoding="utf-8-sig") == "content"


def test_a_missing_file_a_folder_and_binary_data_are_bad_input(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(InputError, match=f"{path}: expected a readable note"):
            read_text(path, "note")


def test_a_valid_mapping_becomes_a_model() -> None:
    assert validate_mapping(Box, {"width": 2}, "box.yaml") == Box(width=2.0)


def test_every_problem_of_a_mapping_is_named() -> None:
    with pytest.raises(InputError) as caught:
        validate_mapping(Box, {"width": "2", "label": None, "depth": 1}, "box.yaml")
    assert [problem.key for problem in caught.value.problems] == ["width", "label", "depth"]
    with pytest.raises(InputError, match=r"box.yaml: width: expected a finite number"):
        validate_mapping(Box, {"width": float("nan")}, "box.yaml")


@dataclass(frozen=True, kw_only=True)
class Shelf:
    boxes: Annotated[list[Annotated[int, Limits(gt=0, le=9)]], Limits(min_length=1)]
    name: str = "shelf"
    place: tuple[Annotated[float, Limits(ge=0.0, lt=1.0)], ...] = ()

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Room:
    shelves: list[Shelf]


def test_a_mapping_becomes_a_dataclass_and_back() -> None:
    raw = {"shelves": [{"boxes": [1, 2], "name": "upper", "place": [0.5]}, {"boxes": [3]}]}
    room = validate_mapping(Room, raw, "room.yaml")
    assert room == Room([Shelf(boxes=[1, 2], name="upper", place=(0.5,)), Shelf(boxes=[3])])
    document = to_document(room)
    assert document == {"shelves": [raw["shelves"][0], {"boxes": [3], "name": "shelf", "place": []}]}
    assert list(document["shelves"][0]) == ["boxes", "name", "place"]  # type: ignore[index, call-overload, arg-type]


def test_a_document_is_a_copy() -> None:
    shelf = Shelf(boxes=[1])
    to_document(shelf)["boxes"].append(2)  # type: ignore[union-attr]
    assert shelf.boxes == [1]


def test_values_outside_their_limits_are_named() -> None:
    with pytest.raises(InputError) as caught:
        validate_mapping(Shelf, {"boxes": [0, 10], "place": [1.0, -0.5, float("nan")], "colour": "red"}, "shelf.yaml")
    assert [(problem.key, problem.expected) for problem in caught.value.problems] == [
        ("boxes.0", "greater than 0"),
        ("boxes.1", "less than or equal to 9"),
        ("place.0", "less than 1"),
        ("place.1", "greater than or equal to 0"),
        ("place.2", "a finite number"),
        ("colour", "no such key"),
    ]
    with pytest.raises(InputError, match=r"shelf\.yaml: boxes: expected .*at least 1 item"):
        validate_mapping(Shelf, {"boxes": []}, "shelf.yaml")
