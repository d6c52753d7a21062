"""Reading and validating files of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.files import read_text
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
        with pytest.raises(InputError, match=f"{path}: expected a readable note, found "):
            read_text(path, "note")


def test_a_valid_mapping_becomes_a_model() -> None:
    assert validate_mapping(Box, {"width": 2}, "box.yaml") == Box(width=2.0)


def test_every_problem_of_a_mapping_is_named() -> None:
    with pytest.raises(InputError) as caught:
        validate_mapping(Box, {"width": "2", "label": None, "depth": 1}, "box.yaml")
    assert [problem.key for problem in caught.value.problems] == ["width", "label", "depth"]
    with pytest.raises(InputError, match=r"box.yaml: width: expected a finite number"):
        validate_mapping(Box, {"width": float("nan")}, "box.yaml")
