"""Runs a case as a user would and says which rules its answer breaks."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TextIO
from unittest.mock import patch

from magicdec.cli.group import DEBUG, FAULT

from .cases import Case
from .seeds import TINY, make_tiny_checkpoint

LIMIT_S = 5.0
MEMORY_BYTES = 2 * 2**30
MESSAGE_CHARACTERS = 2000
EXIT_CODES = (0, 1, 2, 130)


class OutOfTime(BaseException):
    """The case took too long; no `except Exception` may catch it."""


@dataclass(frozen=True)
class Verdict:
    """What a case did.

    Attributes:
        outcome: The exit code, or what happened instead.
        problems: The rules it breaks; the first word is the kind of problem.
        seconds: Its time on the processor. [s]
        bytes: Growth of the peak of memory. [bytes]
    """

    outcome: str
    problems: tuple[str, ...]
    seconds: float
    bytes: int


def prepare(folder: Path) -> None:
    """Make the folder in which cases run, with what they share."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tiny_checkpoint(folder / "tiny")


def judge(case: Case, folder: Path, *, limit_s: float = LIMIT_S) -> Verdict:
    """Run a case in this process, in a folder of its own beside `tiny`, which is removed afterwards.

    Args:
        case: What to run.
        folder: Made by `prepare`; the current folder of this process is somewhere in it.
        limit_s: Time of the processor after which it counts as hanging. [s]
    """
    place = folder / "case"
    (place / "out").mkdir(parents=True)
    for name, text in case.files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(text)
    os.chdir(place)
    before, start = _resident_bytes(), time.process_time()
    peak = _peak_bytes()
    try:
        outcome, problems = _call(case, limit_s) if case.arguments is None else _command(case, case.arguments, limit_s)
        seconds, after = time.process_time() - start, _peak_bytes()
        grown = after - before if after > peak else 0
        if grown > MEMORY_BYTES:
            problems.append(f"memory: {grown / 2**30:.1f} GiB")
        problems += _left_behind(case, folder, outcome)
    finally:
        os.chdir(folder)
        shutil.rmtree(place)
    return Verdict(outcome, tuple(problems), seconds, grown)


# Commands


def _command(case: Case, arguments: tuple[str, ...], limit_s: float) -> tuple[str, list[str]]:
    code, stdout, stderr = _run(arguments, limit_s)
    if isinstance(code, BaseException):
        return _crashed(code)
    if FAULT in stderr:  # once more, to see where
        with patch.dict(os.environ, {DEBUG: "1"}):
            again, _, _ = _run(arguments, limit_s)
        return _crashed(again) if isinstance(again, BaseException) else ("fault", [f"traceback: {stderr[:200]!r}"])
    problems = [f"exit code: {code}"] if code not in EXIT_CODES or (code == 1 and arguments[0] != "run") else []
    if "Traceback (most recent call last)" in stderr:
        problems.append("traceback: printed")
    if "error: out of memory" in stderr:
        problems.append("memory: refused for want of it")
    if noise := re.search(r"note: .* encountered in \w+", stderr):
        problems.append(f"warning: {noise[0]}")
    if code == 2:
        problems += _refusal_problems(case, stderr)
    others = {"-h", "--help", "--jsonl", "--csv", "--md"}  # help, or another form
    if code == 0 and "--json" in arguments and not others & set(arguments):
        problems += _json_problems(stdout)
    return str(code), problems


def _run(arguments: tuple[str, ...], limit_s: float) -> tuple[object, str, str]:
    """Exit code, or the exception that came instead; standard output; standard error."""
    from magicdec.cli import main

    code: object = None
    with _streams() as (out, err), patch.object(sys, "argv", ["magicdec", *arguments]):
        try:
            with _time_limit(limit_s):
                main()
        except SystemExit as end:
            code = 0 if end.code is None else end.code
        except BaseException as error:
            code = error
    return code, _text(out), _text(err)


def _refusal_problems(case: Case, stderr: str) -> Iterator[str]:
    if len(stderr) > MESSAGE_CHARACTERS:
        yield f"message: {len(stderr)} characters, beginning with {stderr[:200]!r}"
    lines = [line for line in stderr.split("\n") if not line.startswith("note: ")]
    if any(line.startswith("Error: ") for line in lines):  # of click, about the command line
        return
    if not any(line.startswith("error: ") for line in lines):
        yield f"message: no error: {stderr[:200]!r}"
    subjects = [name for name in case.files if case.kind != "arguments"]
    named = [*subjects, *(name.split("/")[0] for name in subjects), TINY]
    for line in lines:  # a valid file may still ask for what no option or machine allows
        elsewhere = line.startswith(("error: -", "error: memory of one GPU: "))
        if subjects and line.startswith("error: ") and not elsewhere and not any(name in line for name in named):
            yield f"message: names no file: {line[:200]!r}"
            return


def _json_problems(stdout: str) -> Iterator[str]:
    try:
        document = json.loads(stdout, parse_constant=_refuse)
    except ValueError as error:
        yield f"json: {error}: {stdout[:200]!r}"
        return
    yield from _number_problems(document, "")


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _number_problems(node: object, key: str) -> Iterator[str]:
    """Not finite, or a speedup that is not positive, or a negative time or size."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _number_problems(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _number_problems(value, key)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        if isinstance(node, float) and not math.isfinite(node):
            yield f"number: {key} is {node}"
        elif "speedup" in key and node <= 0:
            yield f"number: {key} is {node}, not positive"
        elif node < 0 and key.startswith("predicted_"):
            yield f"number: {key} is {node}, negative"


# Calls


def _call(case: Case, limit_s: float) -> tuple[str, list[str]]:
    import magicdec

    with _streams():
        try:
            with _time_limit(limit_s):
                result = eval(case.call, dict(_namespace()))
        except magicdec.InputError as error:
            message = str(error)
            return "refused", [f"message: {len(message)} characters"] if len(message) > MESSAGE_CHARACTERS else []
        except BaseException as error:
            return _crashed(error)
        document = result.document() if hasattr(result, "document") else None
        try:
            rendered = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            return "done", [f"json: {error}"]
    return "done", list(_json_problems(rendered))


@cache
def _namespace() -> dict[str, object]:
    from decimal import Decimal
    from fractions import Fraction

    import numpy as np

    import magicdec
    from magicdec.costmodel.hardware.catalog import resolve_profile
    from magicdec.costmodel.models.catalog import resolve_model
    from magicdec.costmodel.speculation.deployment import Deployment
    from magicdec.costmodel.speculation.drafts import Draft

    deployment = Deployment(resolve_model("llama-3.1-8b"), resolve_profile("h100-sxm"), 8, 8)
    values = {"deployment": deployment, "draft": Draft("self", "streaming_llm")}
    return {"magicdec": magicdec, "np": np, "Path": Path, "Decimal": Decimal, "Fraction": Fraction, **values}


# Shared


def _crashed(error: BaseException) -> tuple[str, list[str]]:
    if isinstance(error, OutOfTime):
        return "hang", [f"hang: {_place(error)}"]
    kind = type(error).__name__
    return kind, [f"traceback: {kind} in {_place(error)}: {str(error)[:200]!a}"]


def _place(error: BaseException) -> str:
    """The innermost function of ours that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if re.search(r"/(costmodel|executor|reports|magicdec)/", frame.filename)]
    frame = (ours or list(frames))[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.name}"


def _left_behind(case: Case, folder: Path, outcome: str) -> Iterator[str]:
    """Files that the case created outside `out`, or changed."""
    expected = {folder / "case" / name for name in case.files}
    for path in (folder / "case").rglob("*"):
        if path.is_file() and path not in expected and "out" not in path.relative_to(folder / "case").parts[:1]:
            yield f"files: created {path.relative_to(folder)}"
    for path in folder.iterdir():
        if path.name not in ("case", "tiny"):
            yield f"files: created {path.name}"
    for name, text in case.files.items():
        found = (folder / "case" / name).read_bytes() if (folder / "case" / name).is_file() else None
        if found == text:
            continue
        whole = text[: text.rfind(b"\n") + 1]
        if name != case.grows or outcome != "0" or found is None or not found.startswith(whole):
            yield f"files: changed {name.split('-')[0]} after {outcome}"


@contextlib.contextmanager
def _streams() -> Iterator[tuple[TextIO, TextIO]]:
    """Standard streams that encode as those of a process do, and warnings as a process shows them."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    given = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            yield out, err
    finally:
        sys.stdin = given


def _text(stream: TextIO) -> str:
    assert isinstance(stream, io.TextIOWrapper)
    if stream.closed:
        return ""
    stream.flush()
    written: bytes = stream.buffer.getvalue()
    return written.decode("utf-8", "replace")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` after so many seconds of the processor, and every second from then on, in case something swallows it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident_bytes() -> int:
    """Memory now where the system tells it, else the peak so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_bytes()
    return pages * resource.getpagesize()


def skip_constant_work() -> None:
    """Let `validate` compare the published rows once a process: they take seconds and no input changes them."""
    from magicdec.api import validate

    vars(validate)["published_comparisons"] = cache(vars(validate)["published_comparisons"])
