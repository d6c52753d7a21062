"""Files that replace others: complete or not at all, and every failure names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import main

from magicdec.costmodel.base.errors import InputError
from magicdec.files import writing
from magicdec.files.completions import Completion, CompletionFile

PLAN = "plan --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 64 --context-len 32k -o".split()


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("old")

    def interrupted() -> None:
        with writing.output_file(str(file)) as out:
            assert out is not None
            out.write("half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(main, [*PLAN, str(file)])
    assert result.exit_code == 2
    assert f"error: {file}: expected a file that can be written, found No space left on device" in result.stderr
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_replaced_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    file, link = tmp_path / "plan.yaml", tmp_path / "link.yaml"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    writing.write_text(str(link), "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("place", ["/dev/null", "new/folder/plan.yaml"])
def test_devices_and_new_folders_are_written(place: str, tmp_path: Path) -> None:
    writing.write_text(str(tmp_path / place), "text")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file that can be written, found Is a directory"):
        writing.write_text(str(tmp_path), "text")


def test_completions_may_go_nowhere() -> None:
    with CompletionFile("/dev/null", {"a": "1111"}) as file:
        file.append(Completion("a", "text", 1))
        assert file.present == {"a"}
