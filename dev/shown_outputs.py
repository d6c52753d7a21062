"""Outputs that README and docs show: a `text` block right after an `sh` block of `magicdec` commands is what these print.

A line `...` stands for lines left out. `python dev/shown_outputs.py` runs every such command and puts what it prints now into the
pages; lines that were left out stay out. Outputs that depend on the machine are in `console` blocks, which are left alone.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GAP = "..."


def commands_of(block: str) -> list[str]:
    """The `magicdec` commands of an `sh` block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("magicdec ")]


def needs_this_machine(command: str) -> bool:
    """Whether a command measures or uses this machine's CPU, or runs a model."""
    words = shlex.split(command)
    return "cpu" in words or words[1] in ("demo", "run", "acceptance", "calibrate", "environment") or "cpu.yaml" in words


def run(command: str) -> list[str]:
    """What a command prints, standard output and error together.

    Raises:
        RuntimeError: It failed.
    """
    from magicdec.cli.group import main

    result = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(f"{command}\n{result.output}")
    return [line.rstrip() for line in result.output.rstrip().splitlines()]


def examples(text: str) -> Iterator[tuple[list[str], re.Match[str] | None]]:
    """Commands of every `sh` block, and the match of the `text` block that shows their output, if one follows."""
    blocks = list(BLOCK.finditer(text))
    for block, after in zip(blocks, [*blocks[1:], None], strict=False):
        if block[1] == "sh" and (commands := commands_of(block[2])):
            adjacent = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
            yield commands, after if adjacent else None


def first_wrong_line(shown: Sequence[str], printed: Sequence[str]) -> str | None:
    """The first shown line that is not printed where it stands; None if all are."""
    position, anywhere = 0, False
    for line in shown:
        if line == GAP:
            anywhere = True
            continue
        rest = list(printed[position:]) if anywhere else list(printed[position : position + 1])
        if line not in rest:
            return line
        position, anywhere = position + rest.index(line) + 1, False
    return None if anywhere or position == len(printed) else f"(end of the block, before {printed[position]!r})"


def refreshed(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """What is printed, with the lines left out that were left out before."""
    if GAP not in shown:
        return list(printed)
    found, position = [], 0
    for line in shown:
        if line == GAP:
            found.append(line)
            continue
        likeness = [difflib.SequenceMatcher(None, line, other).ratio() for other in printed[position:]]
        if likeness and max(likeness) > 0.4:
            position += likeness.index(max(likeness))
            found.append(printed[position])
            position += 1
    return found


def refresh(page: Path) -> bool:
    """Run a page's commands in a folder of their own and update what it shows. True if it changed."""
    text = page.read_text(encoding="utf-8")
    replacements = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for commands, block in examples(text):
            if any(map(needs_this_machine, commands)):
                continue
            printed = [line for command in commands for line in run(command)]
            if block is not None:
                replacements.append((block, "\n".join(refreshed(block[2].splitlines(), printed))))
    for block, output in reversed(replacements):
        text = f"{text[: block.start(2)]}{output}\n{text[block.end(2) :]}"
    changed = text != page.read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    return changed


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "80")
    sys.path.insert(0, str(ROOT))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if "magicdec " in page.read_text(encoding="utf-8") and refresh(page):
            print(f"updated {page.relative_to(ROOT)}")
