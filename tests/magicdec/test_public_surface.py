"""What the package offers: the same parameters in Python and on the command line, each of them described."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import click
import pytest
from command_line import call, main

import magicdec

FUNCTIONS = [name for name in magicdec.__all__ if isinstance(getattr(magicdec, name), FunctionType)]
COMMANDS = main.list_commands(click.Context(main))
BUILT = [name for name in COMMANDS if name not in ("demo", "run", "acceptance") or name in magicdec.__all__]
# The command line prints a result and writes it to a file; in Python a result does so itself.
ONLY_OPTIONS = {"as_json", "output"}
# Options that are not the parameter of the same name: a list of rates is one parameter or the other, and another file in is
# another function. `demo --quick` is a choice of two values, and what it has to say on the way goes to stderr.
OTHERWISE = {"predict": {"scenarios"}, "demo": {"quick"}}
ONLY_PARAMETERS = {"predict": {"acceptance_by_position"}, "plan": {"acceptance_by_position"}, "demo": {"say"}}
LOADERS = {"load_plan", "load_measurements"}  # of a path, which the summary is about
WITHOUT_OPTIONS = {"environment"}


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def function(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(magicdec, "import_results" if name == "import" else name)  # a keyword of Python
    return found


def test_the_package_shows_its_public_names_and_no_others() -> None:
    assert dir(magicdec) == sorted([*magicdec.__all__, "__version__"])
    assert magicdec.__all__ == sorted(magicdec.__all__)
    assert all(callable(getattr(magicdec, name)) for name in magicdec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'foretell'"):
        magicdec.foretell  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_describes_every_parameter(name: str) -> None:
    text = inspect.getdoc(function(name)) or ""
    assert re.match(r"[A-Z].*\.(\n|$)", text), "a summary in one line"
    section = re.search(r"\nArgs:\n(.*?)(\n\S|$)", text, re.DOTALL)
    described = re.findall(r"^    ([a-z]\w*(?:, \w+)*):", section[1] if section else "", re.MULTILINE)
    if name not in LOADERS:
        assert set(", ".join(described).split(", ")) - {""} == set(inspect.signature(function(name)).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_takes_input_says_when_it_refuses_it(name: str) -> None:
    text = inspect.getdoc(function(name)) or ""
    assert ("InputError" in text) == bool(inspect.signature(function(name)).parameters)


@pytest.mark.parametrize("name", BUILT)
def test_a_command_and_its_function_take_the_same(name: str) -> None:
    options = {str(parameter.name) for parameter in command(name).params}
    parameters = set(inspect.signature(function(name)).parameters)
    assert options - ONLY_OPTIONS - OTHERWISE.get(name, set()) == parameters - {"output"} - ONLY_PARAMETERS.get(name, set())
    assert bool(parameters) != (name in WITHOUT_OPTIONS)


def test_predict_with_scenarios_is_predict_scenarios() -> None:
    assert set(inspect.signature(magicdec.predict_scenarios).parameters) == OTHERWISE["predict"]


def test_explore_takes_what_plan_takes_where_both_mean_the_same() -> None:
    explored, planned = (inspect.signature(found).parameters for found in (magicdec.explore, magicdec.plan))
    assert set(explored) < set(planned)
    shared = set(explored) - {"batch_size", "context_len"}
    assert {name: explored[name].default for name in shared} == {name: planned[name].default for name in shared}


@pytest.mark.parametrize("name", BUILT)
def test_an_option_has_the_default_of_its_parameter(name: str) -> None:
    parameters = inspect.signature(function(name)).parameters
    chosen = command(name).make_context(name, [], resilient_parsing=True).params
    helps = {str(option.name): option.help or "" for option in command(name).params if isinstance(option, click.Option)}
    for option, found in chosen.items():
        expected = parameters[option].default if option in parameters else inspect.Parameter.empty
        if expected is inspect.Parameter.empty or found == expected or (not found and not expected):
            continue
        assert found is None, f"{option}: {found!r}, in Python {expected!r}"
        assert f"[default: {expected}]" in helps[option]


@pytest.mark.parametrize("name", BUILT)
def test_help_explains_every_option_in_80_columns(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert max(map(len, result.stdout.splitlines())) <= 80
    for option in command(name).params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.opts[0] in result.stdout


@pytest.mark.skipif(len(BUILT) < len(COMMANDS), reason="some commands are not built yet")
def test_the_overview_names_every_command_in_80_columns() -> None:
    result = call("--help")
    assert max(map(len, result.stdout.splitlines())) <= 80
    listed = re.findall(r"^  (\w+)  +\S", result.stdout.split("Commands:")[1], re.MULTILINE)
    assert listed == COMMANDS
