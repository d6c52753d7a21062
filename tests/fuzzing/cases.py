"""A case is a set of files and one command or one call in Python; each follows from its kind, a seed and a number."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random

import click

import magicdec
from magicdec.costmodel.plans.plan import render_plan

from . import nasty, seeds
from .mutations import mutated


@dataclass(frozen=True)
class Case:
    """What one input is.

    Attributes:
        kind, number: Where it comes from.
        files: Content by name, in the folder where it runs.
        arguments: Of `magicdec`; None for a call.
        call: Python source of a call; empty for a command.
        grows: The file that the command continues; empty if it may change none.
    """

    kind: str
    number: int
    files: Mapping[str, bytes] = field(default_factory=dict)
    arguments: tuple[str, ...] | None = None
    call: str = ""
    grows: str = ""

    @property
    def command(self) -> str:
        """As typed in a shell."""
        return shlex.join(("magicdec", *self.arguments)) if self.arguments is not None else f"python -c {shlex.quote(self.call)}"


def make_case(kind: str, seed: int, number: int, *, changed: bool = True) -> Case:
    """The case of this number; unchanged, the valid input that it is made from."""
    random = Random(f"{kind} {seed} {number}")
    if kind == "arguments":
        return _command_case(random, number, changed)
    if kind == "api":
        return _call_case(random, number, changed)
    choices = seeds.SEEDS[kind]()
    origin = random.choice(choices) if changed else choices[number % len(choices)]
    name = origin.name.format(n=number)
    files = {other.format(n=number): text for other, text in origin.others.items()}
    files[name] = mutated(origin.text, origin.form, random) if changed else origin.text
    arguments = tuple(word.format(file=name, n=number) for word in origin.command.split())
    if kind == "prompts":
        files[name] = b"\n".join(files[name].split(b"\n")[:MOST_LINES])
    return Case(kind, number, files, arguments, grows=name if origin.grows else "")


# Commands

POINT = "--model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 64 --context-len 32k"
COMMANDS = {  # valid arguments, and how often the command is taken
    "predict": (f"{POINT} --json", 30),
    "plan": (f"{POINT} --json", 20),
    "regimes": ("--model llama-3.1-8b --hardware h100-sxm --json", 8),
    "export": ("plan.yaml --to vllm --json", 20),
    "run": (f"plan-tiny.yaml --prompts prompts.txt --model-dir {seeds.TINY} --max-new-tokens 2 --json", 12),
    "acceptance": (
        f"--model-dir {seeds.TINY} --text text.txt --kv-budgets 8 --context-lens 32 --rows 1 --max-new-tokens 2 --gamma 2 --json",
        3,
    ),
    "validate": ("measurements.jsonl --json", 3),
    "report": ("plan.yaml --batch-sizes 1 --context-lens 1k --ridge l40 --json -o out", 1),
    "calibrate": ("--from-aiconfigurator missing --system h100_sxm --json", 2),
    "profiles": ("--json", 1),
}
LONG = ("run", "acceptance", "report")  # whatever they are rightly asked for takes as long as it takes
MOST_LINES = 100  # of prompts
LONG_OPTIONS = ("repeats", "from_published")
MEDIUM_NUMBERS = ("32k", "2Ki", "1.5k", "1Gi", "0.5k", "1e3", "64,128")
WRITTEN = ("output", "measurements", "figure", "folder")  # values are names within out/


@cache
def _files() -> Mapping[str, bytes]:
    plan = seeds.planned()[1]
    return {
        "plan.yaml": render_plan(plan).encode(),
        "plan-tiny.yaml": seeds.run_plan(),
        "prompts.txt": seeds.PROMPTS,
        "text.txt": seeds.PROMPTS * 20,
        "measurements.jsonl": seeds.measurement(plan),
        "scenarios.csv": seeds.scenarios()[0].text,
    }


@cache
def _parameters(command: str) -> tuple[click.Option, ...]:
    from magicdec.cli.group import main

    found = main.get_command(click.Context(main), command)
    assert found is not None
    return tuple(one for one in found.params if isinstance(one, click.Option) and one.name not in LONG_OPTIONS)


def _command_case(random: Random, number: int, changed: bool) -> Case:
    names = list(COMMANDS)
    command = random.choices(names, [COMMANDS[name][1] for name in names])[0] if changed else names[number % len(names)]
    words = COMMANDS[command][0].split()
    for _ in range(random.choice((1, 1, 2, 3)) if changed else 0):
        change = random.random()
        if change < 0.3 and words:  # another value where one is
            place = random.randrange(len(words))
            if place == 0 or words[place - 1] not in ("-o", "--output"):
                words[place] = _value(command, random)
        elif change < 0.85 and _parameters(command):
            option = random.choice(_parameters(command))
            flag = random.choice(option.opts)
            words += [flag] if option.is_flag else _with_value(flag, _option_value(command, option, random), random)
        elif change < 0.93 and words:
            del words[random.randrange(len(words))]
        else:
            words.insert(random.randrange(len(words) + 1), _value(command, random))
    return Case("arguments", number, _files(), (command, *words))


def _value(command: str, random: Random) -> str:
    value = random.choice(nasty.ARGUMENTS)
    return "7" if command in LONG and value in MEDIUM_NUMBERS else value


def _option_value(command: str, option: click.Option, random: Random) -> str:
    value = _value(command, random)
    return f"out/{value.replace('/', '_')}" if option.name in WRITTEN else value


def _with_value(flag: str, value: str, random: Random) -> list[str]:
    return [f"{flag}={value}"] if flag.startswith("--") and random.random() < 0.5 else [flag, value]


# Calls

CALLS: Mapping[str, tuple[Mapping[str, str], int]] = {
    "predict": ({**{k: repr(v) for k, v in seeds.ON_8_GPUS.items()}, "batch_size": "64", "context_len": "32000"}, 30),
    "plan": ({**{k: repr(v) for k, v in seeds.ON_8_GPUS.items()}, "batch_size": "64", "context_len": "32000"}, 25),
    "explore": ({k: repr(v) for k, v in seeds.ON_8_GPUS.items()}, 6),
    "regimes": ({k: repr(v) for k, v in seeds.ON_8_GPUS.items()}, 6),
    "export": ({"plan": "'plan.yaml'", "to": "'sglang'"}, 20),
    "predict_scenarios": ({"scenarios": "'scenarios.csv'"}, 3),
    "evaluate_grid": ({"deployment": "deployment", "draft": "draft", "batch_size": "8", "context_len": "4000", "gamma": "3"}, 15),
    "load_plan": ({"path": "'plan.yaml'"}, 2),
    "load_measurements": ({"path": "'measurements.jsonl'"}, 2),
    "validate": ({"files": "'measurements.jsonl'"}, 2),
    "run": ({"plan": "'plan-tiny.yaml'", "prompts": "'prompts.txt'", "model_dir": repr(seeds.TINY), "max_new_tokens": "2"}, 8),
}


@cache
def _signature(function: str) -> tuple[str, ...]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found: Callable[..., object] = getattr(magicdec, function)
    names = [one.name for one in inspect.signature(found).parameters.values() if one.kind in kinds]
    return tuple(name for name in names if name not in (*WRITTEN, *LONG_OPTIONS, "deployment", "curves"))


def _call_case(random: Random, number: int, changed: bool) -> Case:
    names = list(CALLS)
    function = random.choices(names, [CALLS[name][1] for name in names])[0] if changed else names[number % len(names)]
    values = dict(CALLS[function][0])
    for _ in range(random.choice((1, 1, 2, 3)) if changed else 0):
        name = random.choice(_signature(function))
        if (function, name) != ("evaluate_grid", "draft"):  # an object of ours, as deployment and curves are
            values[name] = random.choice(nasty.EXPRESSIONS)
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    return Case("api", number, _files(), call=f"magicdec.{function}({given})")


# How many of each kind there are among 100 of all.
SHARES: Mapping[str, float] = {
    **{"profile": 14, "config": 14, "plan": 16, "curves": 7, "measurements": 5, "report": 0.2, "trace": 6, "scenarios": 6},
    **{"prompts": 5, "run plan": 3, "completions": 3, "checkpoint": 3, "arguments": 9, "api": 8},
}
KINDS = tuple(SHARES)
