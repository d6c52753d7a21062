"""`plan`, `predict` and `regimes` on the command line: maps, traces, every kind of draft, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from costmodel.plan import load_plan
from costmodel.search import GAMMAS, KV_BUDGETS
from costmodel.strategy import NO_SPECULATION
from costmodel.sweep import sweep
from costmodel.units import format_tokens
from magicdec.api import ask, predict
from magicdec.cli import main
from magicdec.planning import Wishes
from magicdec.sweeping import BATCH_SIZES, CONTEXT_LENS

WHERE = "--model llama-3.1-8b --hardware a100-sxm-80gb --num-gpus 8".split()
POINT = [*WHERE, "--batch-size", "64", "--context-len", "32k"]
PLAN, PREDICT = ["plan", *POINT], ["predict", *POINT]
UNCALIBRATED = "--model llama-3.1-8b --hardware a100-sxm-40gb --num-gpus 8".split()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def answered(*arguments: str) -> dict[str, Any]:
    """The JSON document of a call that must succeed."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    assert "NaN" not in result.stdout
    return document


def shown(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout
    return result.stdout


def refused(*arguments: str) -> str:
    """What a refused call says: one message on stderr, nothing on stdout, exit code 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(re.findall(r"^error:|^Error:", result.stderr, re.MULTILINE)) == 1, result.stderr
    return result.stderr


# One point.


def test_a_plan_in_json_is_the_plan_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    document = answered(*PLAN, "-o", str(file))
    assert yaml.safe_load(file.read_text()) == document
    assert set(document) == {
        *("schema_version", "workload", "hardware", "target", "draft", "strategy"),
        *("prediction", "serving", "runner_up", "policy", "notes"),
    }
    assert document["workload"] == {"batch_size": 64, "context_len": 32_000, "output_len": 128}
    prediction = document["prediction"]
    assert prediction["predicted_speedup_low"] < prediction["predicted_speedup"] < prediction["predicted_speedup_high"]
    assert set(prediction["breakdown"]) == {"target", "draft", "verify"}
    assert document["strategy"]["draft_kind"] == "self"
    assert document["policy"] is None
    load_plan(file)


def test_the_text_names_every_kind_of_draft_best_first_and_why_not() -> None:
    words = shown(*PLAN, "--draft", "self", "--draft", "llama-3.2-1b", "--draft", "ngram", "--draft", "mtp")
    rows = [line for line in words.splitlines() if (re.search(r"\d ms|\?", line) and "gamma" in line) or "plain decoding  " in line]
    assert len(rows) == 7
    for word in ("plain decoding", "snapkv budget", "draft Llama-3.2-1B", "mtp draft", "acceptance unknown; pays from 0."):
        assert word in words
    assert "Speculate:" in words.splitlines()[-1]
    assert "first token" in words
    assert "prompts read too" in words


def test_an_unknown_acceptance_is_answered_by_the_acceptance_that_pays() -> None:
    words = shown(*PLAN, "--draft", "ngram")
    least = float(re.findall(r"acceptance unknown; pays from (0\.\d\d)", words)[0])
    assert answered(*PLAN, "--draft", "ngram")["strategy"]["draft_kind"] == "none"
    assert answered(*PLAN, "--draft", "ngram", "--acceptance-rate", f"{least + 0.15:.2f}")["strategy"]["draft_kind"] == "ngram"
    assert answered(*PLAN, "--draft", "ngram", "--acceptance-rate", f"{least - 0.02:.2f}")["strategy"]["draft_kind"] == "none"


def test_a_draft_that_never_pays_says_so() -> None:
    short = ["--batch-size", "1", "--context-len", "100"]
    words = shown("plan", *WHERE, *short, "--draft", "self", "--kv-policy", "pq")
    assert "never pays, whatever is accepted" in words


def test_kv_policies_may_be_repeated() -> None:
    found = answered(*PLAN, "--kv-policy", "streaming_llm", "--kv-policy", "quest")
    policies = {found["strategy"]["kv_policy"], found["runner_up"]["strategy"]["kv_policy"]}
    assert policies <= {"streaming_llm", "quest", "full"}
    words = shown(*PLAN, "--kv-policy", "streaming_llm", "--kv-policy", "quest")
    assert "streaming_llm" in words
    assert "quest" in words
    assert "snapkv" not in words


@pytest.mark.parametrize("twice", [["--draft", "self", "--draft", "self"], ["--kv-policy", "snapkv", "--kv-policy", "snapkv"]])
def test_asking_for_the_same_twice_is_no_different_from_once(twice: list[str]) -> None:
    assert answered(*PLAN, *twice) == answered(*PLAN, *twice[:2])
    assert shown(*PLAN, *twice) == shown(*PLAN, *twice[:2])


def test_gammas_and_budgets_can_be_narrowed() -> None:
    strategy = answered(*PLAN, "--gamma", "2", "--kv-budget", "100,200")["strategy"]
    assert strategy["gamma"] == 2
    assert strategy["kv_budget"] in (100, 200)


def test_cost_is_shown_per_million_tokens_and_orders_as_throughput_does() -> None:
    asked = ["plan", *WHERE, "--batch-size", "1,16,128", "--context-len", "32k", "--gpu-price", "2.5"]
    words = shown(*asked, "--objective", "cost")
    assert "$ per M tokens" in words
    found = answered(*asked, "--objective", "cost")
    per_s = found["workload"]["batch_size"] / found["prediction"]["predicted_speculative_tpot_s"]
    assert f"{8 * 2.5 / 3600 / per_s * 1e6:.2f}" in words
    assert found == answered(*asked, "--objective", "throughput")
    assert found["workload"]["batch_size"] == 128
    assert answered(*asked, "--objective", "latency")["workload"]["batch_size"] == 1
    assert "0.00" in shown(*asked[:-1], "0")


def test_a_limit_is_held_and_a_slower_best_says_so() -> None:
    asked = ["plan", *WHERE, "--batch-size", "1,8,16,32,64,128", "--context-len", "32k", "--max-tpot", "12ms"]
    found = answered(*asked)
    assert found["prediction"]["predicted_speculative_tpot_s"] <= 0.012
    assert 1 < found["workload"]["batch_size"] < 128


def test_an_unreachable_limit_names_the_fastest_that_is_possible() -> None:
    message = refused(*PLAN, "--max-tpot", "1ms")
    fastest = float(re.findall(r"at least ([0-9.]+) ms", message)[0])
    assert answered(*PLAN, "--max-tpot", f"{fastest * 1.01:.4f}ms")["prediction"]["predicted_speculative_tpot_s"] <= fastest / 990


def test_rates_by_position_are_planned_with() -> None:
    found = answered(*PLAN, "--draft", "eagle3", "--acceptance-rate", "0.9,0.8,0.0")
    assert found["strategy"] == {**found["strategy"], "draft_kind": "eagle3", "gamma": 2}
    assert found["prediction"]["predicted_mean_acceptance_length"] == pytest.approx(1 + 0.9 + 0.72)


def test_types_of_target_and_draft_are_planned_with() -> None:
    whole, smaller = answered(*PLAN), answered(*PLAN, "--weight-dtype", "int8", "--kv-dtype", "int4")
    assert smaller["prediction"]["predicted_target_step_s"] < whole["prediction"]["predicted_target_step_s"]
    assert smaller["target"]["weight_dtype"] == "int8"
    assert smaller["target"]["kv_dtype"] == "int4"
    assert "KV in int4" in shown(*PLAN, "--draft-kv-dtype", "int4")
    assert "weights in int8" in shown(*PLAN, "--draft-weight-dtype", "int8")


def test_plain_decoding_alone_can_be_planned() -> None:
    found = answered(*PLAN, "--draft", "none")
    assert found["strategy"]["draft_kind"] == "none"
    assert found["runner_up"] is None


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


def test_the_map_goes_into_the_plan_and_is_what_is_printed(swept: tuple[str, Path]) -> None:
    words, file = swept
    table = load_plan(file).policy
    assert table is not None
    contexts, rows = map_of(words)
    assert contexts == [format_tokens(length) for length in table.context_lens]
    assert list(rows) == table.batch_sizes
    legend = dict(re.findall(r"^([a-zA-Z]|\d+|-)  (\S.*)$", words, re.MULTILINE))
    assert legend["-"] == "plain decoding"
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
    assert lines[0].startswith("never speculating would take ")
    assert re.match(r"always speculating, with gamma \d+, the best of fixed ones, would take \d+% more", lines[1])


def test_the_fixed_gamma_that_is_named_loses_the_least() -> None:
    words = shown("plan", *WHERE, "--sweep", "--batch-size", "64", "--context-len", "32k", "--gamma", "1,3,9")
    question, gammas = ask("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8), (1, 3, 9)
    axes = {"batch_sizes": BATCH_SIZES, "context_lens": CONTEXT_LENS, "kv_budgets": KV_BUDGETS, "curves": question.model.curves}
    drafts = Wishes().found_drafts(question.setup)
    found = sweep(question.setup, drafts, gammas=gammas, **axes)  # type: ignore[arg-type]
    forced = {g: sweep(question.setup, drafts, gammas=[g], **axes).forced_speedup for g in gammas}  # type: ignore[arg-type]
    regrets = {gamma: found.regret(speedup) for gamma, speedup in forced.items()}
    best = min(regrets, key=lambda gamma: regrets[gamma])
    assert f"always speculating, with gamma {best}, the best of fixed ones, would take {regrets[best]:.0%} more" in words
    assert f"never speculating would take {found.regret(1.0):.0%} more" in words
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
            plain = predict("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=batch, context_len=tokens, draft="none")
            assert plain.round.target_step_s <= 0.012, (batch, context)


def test_a_map_needs_no_point_and_chooses_one_that_can_be_served() -> None:
    """Weights of 141 GB leave little of two GPUs; and a limit may rule out what fits."""
    words = shown("plan", "--model", "llama-3.1-70b", "--hardware", "h100-sxm", "--num-gpus", "2", "--sweep")
    assert ".." in words
    assert "batch \\ context" in shown("plan", *WHERE, "--sweep", "--max-tpot", "10ms")


def test_a_map_stays_within_the_positions_a_model_knows() -> None:
    words = shown("plan", "--model", "reference", "--hardware", "l4", "--sweep")
    assert not re.search(r"knows \d+ positions", words)
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
        ('{"prompt_len": 5', "trace.csv:1: expected a JSON object"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    assert expected in refused("plan", *WHERE, "--batch-size", "8", "--trace", str(file))


# Predictions of every kind of draft.


@pytest.mark.parametrize("draft", ["mtp", "eagle3", "ngram"])
def test_a_draft_without_a_budget_is_predicted(draft: str) -> None:
    given = answered(*PREDICT, "--draft", draft, "--gamma", "2", "--acceptance-rate", "0.6")
    assert given["predicted_mean_acceptance_length"] == pytest.approx(1 + 0.6 + 0.36)
    assert given["strategy"] == {**given["strategy"], "draft_kind": draft, "kv_policy": "full", "kv_budget": None, "gamma": 2}
    assert given["predicted_draft_step_s"] < 0.3 * given["predicted_target_step_s"]
    assert (given["memory_breakdown"]["draft_weights_bytes"] == 0) == (draft == "ngram")


def test_a_prediction_of_unknown_acceptance_says_what_pays() -> None:
    unknown = answered(*PREDICT, "--draft", "ngram")
    for name in ("predicted_speedup", "predicted_speedup_low", "predicted_speculative_tpot_s", "acceptance_rate"):
        assert unknown[name] is None
    least = unknown["minimum_useful_acceptance_rate"]
    gamma = str(unknown["strategy"]["gamma"])
    at = answered(*PREDICT, "--draft", "ngram", "--gamma", gamma, "--acceptance-rate", str(least))
    assert at["predicted_speedup"] == pytest.approx(1, rel=1e-6)
    assert f"it pays from an acceptance rate of {least:.2f}" in shown(*PREDICT, "--draft", "ngram")
    for other in GAMMAS:
        assert answered(*PREDICT, "--draft", "ngram", "--gamma", str(other))["minimum_useful_acceptance_rate"] >= least


def test_a_borrowed_acceptance_is_said_and_widens_the_interval() -> None:
    borrowed = answered(*PREDICT, "--draft", "mtp", "--gamma", "1")
    assert any("borrowed from DeepSeek-V3" in note for note in borrowed["notes"])
    rate = str(borrowed["acceptance_rate"])
    given = answered(*PREDICT, "--draft", "mtp", "--gamma", "1", "--acceptance-rate", rate)
    assert borrowed["predicted_speedup_low"] < given["predicted_speedup_low"]
    assert given["predicted_speedup"] == pytest.approx(borrowed["predicted_speedup"], rel=1e-9)


def test_rates_by_position_are_predicted_with() -> None:
    found = answered(*PREDICT, "--gamma", "3", "--acceptance-rate", "0.9,0.8,0.7")
    assert found["predicted_mean_acceptance_length"] == pytest.approx(1 + 0.9 + 0.72 + 0.504)
    longer = answered(*PREDICT, "--gamma", "4", "--acceptance-rate", "0.9,0.8,0.7")
    assert longer["predicted_mean_acceptance_length"] == pytest.approx(1 + 0.9 + 0.72 + 0.504 + 0.504 * 0.7)
    best = answered(*PREDICT, "--acceptance-rate", "0.9,0.8,0.0")
    assert best["strategy"]["gamma"] <= 2


@pytest.mark.parametrize(
    ("options", "cheaper"),
    [
        (["--weight-dtype", "int8"], "predicted_target_step_s"),
        (["--kv-dtype", "fp8"], "predicted_target_step_s"),
        (["--kv-dtype", "int4"], "predicted_verify_step_s"),
    ],
)
def test_smaller_types_make_the_target_cheaper(options: list[str], cheaper: str) -> None:
    whole, smaller = (answered(*PREDICT, "--gamma", "2", *more) for more in ([], options))
    assert smaller[cheaper] < whole[cheaper]
    assert smaller["memory_bytes"] < whole["memory_bytes"]


def test_a_draft_in_smaller_types_leaves_the_target_as_it_is() -> None:
    whole = answered(*PREDICT, "--draft", "none")
    for options in (["--draft-kv-dtype", "int4"], ["--draft-weight-dtype", "int8", "--acceptance-rate", "0.95"]):
        found = answered(*PREDICT, "--gamma", "2", *options)
        assert found["predicted_target_step_s"] == whole["predicted_target_step_s"]
        assert found["predicted_draft_step_s"] < found["predicted_target_step_s"]
        assert found["strategy"]["kv_policy"] == "full"
        assert found["memory_bytes"] > whole["memory_bytes"]


def test_mtp_on_a_model_with_windows_takes_a_positive_time() -> None:
    asked = "predict --model gpt-oss-20b --hardware h100-sxm --batch-size 32 --context-len 32k --draft mtp --gamma 2".split()
    found = answered(*asked)
    assert 0 < found["predicted_draft_step_s"] < found["predicted_target_step_s"]
    assert all(part >= 0 for part in found["breakdown"]["draft"].values())
    assert found["predicted_speedup"] < 3


def test_the_field_report_as_a_user_would_ask_it() -> None:
    """Llama-3.1-8B with 257 SnapKV entries and gamma 2 on 8 A100 of 40 GB at 32k: no speedup at any batch up to 48."""
    report = ["--context-len", "32k", "--kv-policy", "snapkv", "--kv-budget", "257", "--gamma", "2"]
    verdicts = {}
    for batch in ("1", "8", "16", "48"):
        words = shown("predict", *UNCALIBRATED, "--batch-size", batch, *report)
        assert "extrapolated" in words
        assert "not calibrated" in words
        verdicts[batch] = words.splitlines()[-1].split(":")[0]
    assert set(list(verdicts.values())[:3]) == {"Within noise, do not speculate"}
    assert verdicts["48"] == "Speculate"
    per_token = answered("predict", *UNCALIBRATED, "--batch-size", "48", *report, "--verify-kernel", "per_token")
    assert per_token["predicted_speedup"] < 0.9
    assert per_token["minimum_useful_acceptance_rate"] is None
    chosen = answered("plan", *UNCALIBRATED, "--batch-size", "48", "--context-len", "32k")
    assert chosen["strategy"]["kv_policy"] == "snapkv"
    assert chosen["strategy"]["kv_budget"] > 4 * 257
    assert answered("plan", *UNCALIBRATED, "--batch-size", "1", "--context-len", "32k")["strategy"]["draft_kind"] == "none"


# Scenarios.


def test_a_scenario_of_unknown_acceptance_says_so(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("hardware,target,batch_size,context_len,draft_kind\nh100-sxm,llama-3.1-8b,8,32000,ngram\n")
    result = call("predict", "--scenarios", str(source), "-o", str(out))
    assert result.exit_code == 0
    header, row = (line.split(",") for line in out.read_text().splitlines())
    found = dict(zip(header, row, strict=False))
    assert float(found["predicted_verify_step_s"]) > float(found["predicted_target_step_s"]) > 0
    assert "nan" not in out.read_text().replace("accepta", "")
    assert "acceptance" in found["error"]


def test_a_scenario_with_more_tokens_a_round_than_were_drafted_says_so(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("hardware,target,batch_size,context_len,gamma,mean_acceptance_length\nh100-sxm,llama-3.1-8b,8,32000,2,3.5\n")
    result = call("predict", "--scenarios", str(source), "--json")
    (row,) = json.loads(result.stdout)
    assert "1 to gamma + 1" in row["error"]
    assert "3.5" in row["error"]


def test_a_scenario_with_more_draft_tokens_than_any_engine_takes_says_so(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("hardware,target,batch_size,context_len,gamma\n" + "h100-sxm,llama-3.1-8b,8,32000,65\n" * 2)
    for row in json.loads(call("predict", "--scenarios", str(source), "--json").stdout):
        assert "gamma" in row["error"]
        assert "64" in row["error"]


# Where the picture changes.


def test_regimes_are_shown_and_are_json() -> None:
    asked = ["regimes", *WHERE, "--small-draft", "llama-3.2-1b"]
    document = answered(*asked)
    assert 3000 <= document["critical_context_len"] <= 5500
    assert document["ridge_points_flop_per_byte"]["bfloat16"] == pytest.approx(153, abs=1)
    needed = [row["minimum_acceptance_rate"] for row in document["budgets"]]
    assert needed == sorted(needed)
    for row in document["budgets"]:
        assert row["admissible"] == (row["acceptance_rate"] >= row["minimum_acceptance_rate"])
    assert isinstance(document["crossover_batch_size"], int)
    words = shown(*asked)
    assert f"from a context of about {document['critical_context_len']:,.0f} tokens" in words
    assert f"overtakes llama-3.2-1b from batch size {document['crossover_batch_size']}" in words
    dearer = [row["minimum_acceptance_rate"] for row in answered(*asked, "--speedup", "1.4")["budgets"]]
    assert all(more is None or more > less for more, less in zip(dearer, needed, strict=True))


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", *WHERE], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "8"], "--context-len"),
        (["plan", *WHERE, "--context-len", "8k"], "--batch-size"),
        (["plan", "--model", "llama-3.1-8b", "--batch-size", "8", "--context-len", "8k"], "--hardware"),
        (["plan", *WHERE, "--batch-size", "8", "--trace", "none.csv"], "none.csv"),
        (["plan", *WHERE, "--batch-size", "8,,16", "--context-len", "8k"], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "0", "--context-len", "8k"], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "1.5", "--context-len", "8k"], "'1.5'"),
        ([*PLAN, "--gamma", "0"], "--gamma"),
        ([*PLAN, "--gamma", "65"], "64 draft tokens per round"),
        ([*PLAN, "--kv-budget", "0"], "--kv-budget"),
        ([*PLAN, "--kv-policy", "best"], "streaming_llm"),
        ([*PLAN, "--kv-policy", "full"], "--kv-policy"),
        ([*PLAN, "--draft", "gpt-9"], "--draft"),
        ([*PLAN, "--draft", "model"], "--draft"),
        ([*PLAN, "--draft", "tinyllama-1.1b"], "vocabulary"),
        ([*PLAN, "--objective", "money"], "'latency', 'throughput', 'cost'"),
        ([*PLAN, "--max-tpot", "0"], "--max-tpot"),
        ([*PLAN, "--max-tpot", "1us"], "at least"),
        ([*PLAN, "--max-tpot", "5 parsecs"], "5 parsecs"),
        ([*PLAN, "--gpu-price", "-1"], "--gpu-price"),
        ([*PLAN, "--gpu-price", "nan"], "--gpu-price"),
        ([*PLAN, "--gpu-price", "inf"], "--gpu-price"),
        ([*PLAN, "--acceptance-rate", "1.5"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "nan"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "0.9,"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "0.9,high"], "--acceptance-rate"),
        ([*PLAN, "--weight-dtype", "int3"], "--weight-dtype"),
        ([*PLAN, "--kv-dtype", "bf16"], "--kv-dtype"),
        ([*PLAN, "--draft-kv-dtype", "bf16"], "--draft-kv-dtype"),
        ([*PLAN, "--verify-kernel", "magic"], "shared_kv_splitkv"),
        ([*PLAN, "--tensor-parallel", "3"], "--tensor-parallel"),
        ([*PLAN, "--json", "-o", "-"], "--json"),
        ([*PLAN, "--draft", "ngram", "--kv-policy", "snapkv"], "--kv-policy"),
        ([*PLAN, "--draft", "ngram", "--kv-budget", "512"], "--kv-budget"),
        (["plan", *WHERE, "--batch-size", "4096", "--context-len", "100k"], "memory of one GPU"),
        ([*PREDICT, "--draft", "ngram", "--kv-policy", "snapkv"], "--kv-policy"),
        ([*PREDICT, "--draft", "mtp", "--kv-budget", "512"], "--kv-budget"),
        ([*PREDICT, "--draft", "llama-3.2-1b", "--kv-policy", "full", "--kv-budget", "512"], "--kv-budget"),
        ([*PREDICT, "--draft", "none", "--gamma", "3"], "--gamma"),
        ([*PREDICT, "--draft", "none", "--mean-acceptance-length", "3"], "--mean-acceptance-length"),
        ([*PREDICT, "--draft", "mtp", "--draft-kv-dtype", "int4"], "--draft-kv-dtype"),
        ([*PREDICT, "--draft", "self", "--draft-tensor-parallel", "2"], "--draft-tensor-parallel"),
        ([*PREDICT, "--draft", "llama-3.2-1b", "--draft-weight-dtype", "int8"], "--draft-weight-dtype"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "2", "--acceptance-rate", "0.5"], "--mean-acceptance-length"),
        ([*PREDICT, "--mean-acceptance-length", "2"], "--gamma"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "3.5"], "gamma + 1"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "nan"], "--mean-acceptance-length"),
        ([*PREDICT, "--gamma", "100"], "64 draft tokens per round"),
        (["regimes", *WHERE, "--speedup", "nan"], "--speedup"),
        (["regimes", *WHERE, "--kv-policy", "full"], "--kv-policy"),
        (["regimes", *WHERE, "--small-draft", "tinyllama-1.1b"], "vocabulary"),
    ],
    ids=lambda value: " ".join(value[7:] if value[0] == "plan" else value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_that_names_it(arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)
