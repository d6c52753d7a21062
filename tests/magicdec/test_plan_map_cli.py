"""`plan --sweep` and `plan --trace` on the command line: the whole map, and mixed lengths."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import UNCALIBRATED, WHERE, answered, refused, shown

import magicdec
from magicdec.api.explore import BATCH_SIZES, CONTEXT_LENS
from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.planning.search import KV_BUDGETS
from magicdec.costmodel.planning.sweep import sweep
from magicdec.costmodel.plans.plan import load_plan
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.inputs.plan_search import PlanSearch
from magicdec.inputs.scenario import resolve_scenario

# The map.


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Text and plan file of one map."""
    file = tmp_path_factory.mktemp("sweep") / "plan.yaml"
    return shown("plan", *WHERE, "--batch-size", "48", "--context-len", "20k", "--sweep", "-o", str(file)), file


def map_of(words: str) -> tuple[list[str], dict[int, list[str]]]:
    """(contexts, {batch: cells}) of a printed map."""
    lines = words.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("batch \\ context"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.strip():
            break
        batch, *cells = line.split()
        rows[int(batch)] = cells
    return lines[start].split()[3:], rows


def test_ranges_are_the_axes_of_the_map() -> None:
    words = shown("plan", *WHERE, "--sweep", "--batch-size", "8-48", "--context-len", "2k-12k", "--kv-policy", "snapkv")
    contexts, rows = map_of(words)
    assert contexts == ["2k", "4k", "8k", "12k"]
    assert list(rows) == [8, 16, 32, 48]


def test_the_map_goes_into_the_plan_and_is_what_is_printed(swept: tuple[str, Path]) -> None:
    words, file = swept
    table = load_plan(file).policy
    assert table is not None
    contexts, rows = map_of(words)
    assert contexts == [format_tokens(length) for length in table.context_lens]
    assert list(rows) == table.batch_sizes
    legend = dict(re.findall(r"^([a-zA-Z]|\d+|-)  (\S.*)$", words, re.MULTILINE))
    assert legend["-"] == "no speculation"
    for i, cells in enumerate(rows.values()):
        for j, cell in enumerate(cells):
            strategy, speedup = table.strategies[table.choice[i][j]], table.predicted_speedup[i][j]
            if cell in ("-", ".."):
                assert strategy == NO_SPECULATION
                continue
            number, mark = re.fullmatch(r"(\d\.\d\d)(\D)", cell).groups()  # type: ignore[union-attr]
            assert float(number) == pytest.approx(speedup, abs=0.0051)
            assert legend[mark] == str(strategy)


def test_the_map_holds_the_usual_axes_and_what_was_asked(swept: tuple[str, Path]) -> None:
    table = load_plan(swept[1]).policy
    assert table is not None
    assert {1, 16, 48, 256} <= set(table.batch_sizes)
    assert {1000, 20_000, 128_000} <= set(table.context_lens)


def test_the_map_shows_the_shape_of_the_paper(swept: tuple[str, Path]) -> None:
    contexts, rows = map_of(swept[0])
    assert set(rows[1]) == {"-"}, "batch 1 decodes plainly"
    assert {cells[0] for cells in rows.values()} == {"-"}, "so does every batch at 1k"
    assert rows[256][-1] == ".."
    at_32k = [cells[contexts.index("32k")] for cells in rows.values()]
    speedups = [float(cell[:4]) for cell in at_32k if cell[0].isdigit()]
    assert speedups == sorted(speedups)
    assert max(speedups) > 1.3


def test_the_map_says_what_simple_choices_lose(swept: tuple[str, Path]) -> None:
    lines = [line for line in swept[0].splitlines() if "time per token, on average over the map" in line]
    assert len(lines) == 2
    assert lines[0].startswith("never speculating takes ")
    assert re.match(r"always speculating, with gamma \d+ \(the best fixed one\), takes \d+% more time", lines[1])


def test_the_fixed_gamma_that_is_named_loses_the_least() -> None:
    words = shown("plan", *WHERE, "--sweep", "--batch-size", "64", "--context-len", "32k", "--gamma", "1,3,9")
    scenario, gammas = resolve_scenario("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8), (1, 3, 9)
    axes = {"batch_sizes": BATCH_SIZES, "context_lens": CONTEXT_LENS, "kv_budgets": KV_BUDGETS, "curves": scenario.model.curves}
    axes |= {"output_len": 128}
    drafts = PlanSearch().resolve_drafts(scenario.deployment)
    found = sweep(scenario.deployment, drafts, gammas=gammas, **axes)  # type: ignore[arg-type]
    forced = {g: sweep(scenario.deployment, drafts, gammas=[g], **axes).forced_speedup for g in gammas}  # type: ignore[arg-type]
    regrets = {gamma: found.regret(speedup) for gamma, speedup in forced.items()}
    best = min(regrets, key=lambda gamma: regrets[gamma])
    assert f"always speculating, with gamma {best} (the best fixed one), takes {regrets[best]:.0%} more" in words
    assert f"never speculating takes {found.regret(1.0):.0%} more" in words
    assert max(regrets.values()) > regrets[best] + 0.02


@pytest.mark.parametrize("arguments", [["--model", "llama-2-7b-32k", "--hardware", "l4", "--num-gpus", "2"], UNCALIBRATED])
def test_nothing_ever_takes_less_than_nothing_more(arguments: list[str]) -> None:
    """The map goes by the lower ends of its intervals; a bolder choice may be better on average, and then it says so."""
    words = shown("plan", *arguments, "--sweep", "--batch-size", "1", "--context-len", "8k")
    assert "-0%" not in words
    assert not re.search(r"-\d+% more", words)


def test_a_map_of_one_gamma_and_unknown_drafts_only_decodes_plainly() -> None:
    words = shown("plan", *WHERE, "--sweep", "--draft", "ngram", "--gamma", "3")
    _, rows = map_of(words)
    assert {cell for cells in rows.values() for cell in cells} == {"-", ".."}
    assert "always speculating" not in words, "what it would cost is not known"


def test_a_map_without_drafts() -> None:
    _, rows = map_of(shown("plan", *WHERE, "--sweep", "--draft", "none"))
    assert {cell for cells in rows.values() for cell in cells} == {"-", ".."}


def test_given_rates_make_the_map_too() -> None:
    hopeless = shown("plan", *WHERE, "--sweep", "--acceptance-rate", "0.1,0.1")
    assert {cell for cells in map_of(hopeless)[1].values() for cell in cells} == {"-", ".."}
    sure = shown("plan", *WHERE, "--sweep", "--acceptance-rate", "0.99,0.99,0.99", "--draft", "ngram")
    assert sum(cell[0].isdigit() for cells in map_of(sure)[1].values() for cell in cells) > 40


def test_no_cell_of_a_map_under_a_limit_is_slower() -> None:
    free, limited = (
        map_of(shown("plan", *WHERE, "--sweep", "--batch-size", "1", "--context-len", "1k", *more))[1]
        for more in ([], ["--max-tpot", "12ms"])
    )
    assert sum(cells.count("..") for cells in limited.values()) > sum(cells.count("..") for cells in free.values())
    contexts = map_of(shown("plan", *WHERE, "--sweep", "--batch-size", "1", "--context-len", "1k"))[0]
    for batch, cells in limited.items():
        for context, cell in zip(contexts, cells, strict=True):
            if cell != "-":
                continue
            tokens = int(context[:-1]) * 1000
            plain = magicdec.predict(
                "llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=batch, context_len=tokens, draft="none"
            )
            assert plain.round.target_step_s <= 0.012, (batch, context)


def test_a_map_needs_no_point_and_chooses_one_that_can_be_served() -> None:
    """Weights of 141 GB leave little of two GPUs; and a limit may rule out what fits."""
    words = shown("plan", "--model", "llama-3.1-70b", "--hardware", "h100-sxm", "--num-gpus", "2", "--sweep")
    assert ".." in words
    assert "batch \\ context" in shown("plan", *WHERE, "--sweep", "--max-tpot", "10ms")


def test_a_map_stays_within_the_positions_a_model_knows() -> None:
    words = shown("plan", "--model", "reference", "--hardware", "l4", "--sweep")
    assert "supports" not in words
    contexts, _ = map_of(words)
    assert "16k" not in contexts
    assert "32k" not in contexts


# Traces.


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "trace.jsonl"
    requests = [(1000, 200), (30_000, 400), (60_000, 200)] * 20
    file.write_text("".join(json.dumps({"prompt_len": p, "output_len": o, "model": "x"}) + "\n" for p, o in requests))
    return str(file)


def test_a_trace_is_planned_for(trace: str) -> None:
    found = answered("plan", *WHERE, "--batch-size", "64", "--trace", trace)
    assert found["workload"] == {"batch_size": 64, "context_len": 30_333, "output_len": 267}
    assert found["strategy"]["draft_kind"] == "self"
    assert found["serving"]["predicted_request_s"] < found["serving"]["predicted_plain_request_s"]
    alike = answered("plan", *WHERE, "--batch-size", "64", "--context-len", "30333", "--output-len", "267")
    assert found["serving"]["predicted_ttft_s"] > alike["serving"]["predicted_ttft_s"]
    assert found["prediction"] != alike["prediction"]


def test_a_trace_may_choose_its_batch_and_come_with_a_map(trace: str) -> None:
    found = answered("plan", *WHERE, "--batch-size", "1,32,64", "--trace", trace, "--max-tpot", "16ms")
    assert found["workload"]["batch_size"] in (32, 64)
    with_map = answered("plan", *WHERE, "--batch-size", "64", "--trace", trace, "--sweep")
    assert 30_333 in with_map["policy"]["context_lens"]


@pytest.mark.parametrize("beside", [["--context-len", "8k"], ["--output-len", "5"]])
def test_a_trace_has_its_own_lengths(trace: str, beside: list[str]) -> None:
    assert "--trace" in refused("plan", *WHERE, "--batch-size", "8", "--trace", trace, *beside)
    assert "--batch-size" in refused("plan", *WHERE, "--trace", trace)


def test_a_trace_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Nearly every place holds a long request: 56 of them do not fit, though the mean request of the file would."""
    file = tmp_path / "trace.csv"
    file.write_text("prompt_len,output_len\n100,10\n100000,1000\n")
    assert "memory of one GPU" in refused("plan", *WHERE, "--batch-size", "56", "--trace", str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt_len,output_len\n5,5\n0,5\n", "trace.csv:3: prompt_len: expected a positive whole number, found '0'"),
        ("prompt_len,output_len\n5,5\nnan,5\n", "trace.csv:3: prompt_len: expected a positive whole number, found 'nan'"),
        ("prompt_len,output_len\n5,5\ninf,5\n", "trace.csv:3: prompt_len: expected a positive whole number, found 'inf'"),
        ("prompt,output\n5,5\n", "prompt_len, output_len"),
        ("", "trace.csv"),
        ('{"prompt_len": 5', "trace.csv:1: expected a request as JSON"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    assert expected in refused("plan", *WHERE, "--batch-size", "8", "--trace", str(file))


# One rule.


@pytest.mark.parametrize("point", [(64, 32_000), (128, 8000), (8, 1000)])
def test_a_plan_and_the_map_choose_the_same_strategy_with_the_same_speedup(point: tuple[int, int]) -> None:
    batch, context = point
    asked = {"num_gpus": 8, "output_len": 300, "draft": ["self", "llama-3.2-1b", "eagle3"]}
    alone = magicdec.plan("llama-3.1-8b", "h100-sxm", batch_size=batch, context_len=context, **asked)  # type: ignore[arg-type]
    found = magicdec.explore("llama-3.1-8b", "h100-sxm", batch_size=[1, batch], context_len=[500, context], **asked)  # type: ignore[arg-type]
    assert found.policy.at(batch, context) == alone.strategy
    row = next(row for row in found.rows() if (row["batch_size"], row["context_len"]) == point)
    assert row["predicted_speedup"] == pytest.approx(alone.prediction.predicted_speedup)
    served = alone.plan.serving
    assert served is not None
    assert row["predicted_end_to_end_speedup"] == pytest.approx(served.predicted_speedup)
