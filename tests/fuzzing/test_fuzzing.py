"""A bounded share of what `scripts/fuzz` runs, always the same; and that the judge sees what it is there to see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from . import nasty, seeds
from .cases import CALLS, COMMANDS, KINDS, Case, make_case
from .judge import judge, prepare, skip_constant_work
from .mutations import mutated

COUNTS = {  # by what one costs
    **{"profile": 50, "config": 150, "plan": 150, "curves": 100, "measurements": 15, "report": 8, "trace": 150},
    **{"scenarios": 100, "prompts": 40, "run plan": 40, "completions": 40, "checkpoint": 40, "arguments": 80, "api": 150},
}
KINDS_HERE = [pytest.param(kind, marks=pytest.mark.slow) if kind in ("report", "measurements") else kind for kind in KINDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzzing")
        patch.chdir(place)
        prepare(place)
        skip_constant_work()
        yield place


def case_of(folder: Path, kind: str, number: int, *, changed: bool = True) -> Case:
    os.chdir(folder / "tiny")  # seeds are made where `../tiny` is the checkpoint
    return make_case(kind, 0, number, changed=changed)


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_the_inputs_that_are_changed_are_right_before(kind: str, folder: Path) -> None:
    os.chdir(folder / "tiny")
    for number in range(len({"arguments": COMMANDS, "api": CALLS}.get(kind) or seeds.SEEDS[kind]())):
        case = case_of(folder, kind, number, changed=False)
        if (
            kind == "arguments" and case.arguments and case.arguments[0] in ("calibrate", "report")
        ):  # no tables; among the slow ones
            continue
        verdict = judge(case, folder, limit_s=60)
        assert (verdict.outcome, verdict.problems) == ("done" if kind == "api" else "0", ()), case.command


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_hostile_inputs_are_refused_in_one_message_or_answered_rightly(kind: str, folder: Path) -> None:
    outcomes = set()
    for number in range(COUNTS[kind]):
        case = case_of(folder, kind, number)
        verdict = judge(case, folder, limit_s=60)  # of a shared machine
        assert not verdict.problems, f"scripts/fuzz --kind '{kind}' --case {number}: {case.command}"
        outcomes.add(verdict.outcome)
    assert outcomes >= ({"done", "refused"} if kind == "api" else {"0", "2"})  # neither all refused nor none


@pytest.mark.parametrize("form", ["json", "yaml", "jsonl", "csv", "text"])
def test_changes_change_most_files_and_are_the_same_again(form: str) -> None:
    text = b"a,b\n1,2\n3,4\n" if form == "csv" else b'{"a": [1, 2.5, "x"], "b": {"c": null}}\n'
    found = [mutated(text, form, Random(number)) for number in range(300)]
    assert found == [mutated(text, form, Random(number)) for number in range(300)]
    assert sum(one != text for one in found) > 280
    assert len(set(found)) > 150


# What the judge sees


def problem_of(folder: Path, call: str, limit_s: float = 5.0) -> str:
    os.chdir(folder / "tiny")
    (problem, *_) = judge(Case("api", 0, {"given.txt": b"x"}, call=call), folder, limit_s=limit_s).problems
    return problem


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("1 / 0", "traceback: ZeroDivisionError"),
        ("exec('while True: pass')", "hang"),
        ("exec('try:\\n while True: pass\\nexcept Exception: pass')", "hang"),
        ("open('created', 'w').close()", "files: created case/created"),
        ("open('../created', 'w').close()", "files: created"),
        ("open('given.txt', 'w').close()", "files: changed given.txt"),
        ("type('R', (), {'document': lambda self: {'speedup': 0.0}})()", "number: speedup is 0.0"),
        ("type('R', (), {'document': lambda self: {'speedup': float('nan')}})()", "json: Out of range"),
        ("type('R', (), {'document': lambda self: {'predicted_x_s': [1, -1]}})()", "number: predicted_x_s is -1"),
        ("magicdec.load_plan('x' * 3000)", ""),
    ],
)
def test_the_judge_sees(call: str, kind: str, folder: Path) -> None:
    if kind:
        assert problem_of(folder, call, 0.2).startswith(kind)
        (folder / "created").unlink(missing_ok=True)
    else:
        assert not judge(Case("api", 0, call=call), folder).problems


def test_the_judge_sees_a_refusal_that_names_no_file(folder: Path) -> None:
    os.chdir(folder / "tiny")
    refused = Case("plan", 0, {"plan-0.yaml": b"x"}, ("export", "missing.yaml", "--to", "vllm"))
    assert judge(refused, folder).problems[0].startswith("message: names no file")
    refused = Case("plan", 0, {"plan-0.yaml": b"x"}, ("export", "plan-0.yaml", "--to", "vllm"))
    verdict = judge(refused, folder)
    assert (verdict.outcome, verdict.problems) == ("2", ())


def test_nasty_values_are_what_they_say() -> None:
    assert all("\0" not in text for text in nasty.ARGUMENTS)
    assert len(nasty.laughs(9, 9)) < 1000
