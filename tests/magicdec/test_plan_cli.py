"""`plan`, `predict` and `regimes` on the command line: every kind of draft, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from command_line import UNCALIBRATED, WHERE, answered, call, refused, shown

import magicdec
from magicdec.costmodel.planning.search import GAMMAS
from magicdec.costmodel.plans.plan import load_plan
from magicdec.costmodel.plans.strategy import NO_SPECULATION

POINT = [*WHERE, "--batch-size", "64", "--context-len", "32k"]
PLAN, PREDICT = ["plan", *POINT], ["predict", *POINT]


# One point.


def test_a_plan_in_json_is_the_plan_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    document = answered(*PLAN, "-o", str(file))
    assert {row["why_not"] for row in document.pop("candidates")} >= {"chosen", "slower"}
    assert yaml.safe_load(file.read_text()) == document
    assert set(document) == {
        *("schema_version", "workload", "hardware", "target", "draft", "strategy"),
        *("prediction", "serving", "runner_up", "policy", "notes"),
        *("draft_checkpoint", "mix", "verify_kernel", "engine", "task", "cost", "limits"),
    }
    assert document["workload"] == {"batch_size": 64, "context_len": 32_000, "output_len": 128}
    prediction = document["prediction"]
    assert prediction["predicted_speedup_low"] < prediction["predicted_speedup"] < prediction["predicted_speedup_high"]
    assert set(prediction["breakdown"]) == {"target", "draft", "verify"}
    assert document["strategy"]["draft_kind"] == "self"
    assert document["policy"] is None
    load_plan(file)
    where = {"num_gpus": 8, "batch_size": 64, "context_len": 32_000}
    assert document == magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", **where).to_dict(), "Python plans the same"


def test_the_text_names_every_kind_of_draft_best_first_and_why_not() -> None:
    words = shown(*PLAN, "--draft", "self", "--draft", "llama-3.2-1b", "--draft", "ngram", "--draft", "eagle3")
    verdict, table = words.split("\n\n")[:2]
    _, header, _, *rows = table.splitlines()
    assert header.startswith("draft, best first")
    assert len(rows) == 14
    for number, word in enumerate(("self snapkv", "Llama-3.2-1B", "eagle3", str(NO_SPECULATION))):
        assert any(re.match(rf"\d {word}", row) for row in rows), (number, word)
    (unknown,) = [row[0] for row in rows if row[1:].startswith(" ngram")]
    (why,) = [row for row in rows if row.startswith(f"{unknown}: ")]
    assert re.search(r"acceptance\D+0\.\d\d$", why)
    assert rows[7] == "1: chosen"
    assert verdict.startswith("Speculate: ")
    assert max(map(len, table.splitlines())) <= 80
    assert "TTFT" in words
    assert re.search(
        r"end-to-end throughput: \d+ against \d+ tokens/s \(\d\.\d\dx\); prefill takes \d+% of the time", " ".join(words.split())
    )


def test_an_unknown_acceptance_is_answered_by_the_acceptance_that_pays() -> None:
    words = shown(*PLAN, "--draft", "ngram")
    least = float(re.findall(r"unknown\D+(0\.\d\d)", words)[0])
    assert answered(*PLAN, "--draft", "ngram")["strategy"]["draft_kind"] == "none"
    assert answered(*PLAN, "--draft", "ngram", "--acceptance-rate", f"{least + 0.15:.2f}")["strategy"]["draft_kind"] == "ngram"
    assert answered(*PLAN, "--draft", "ngram", "--acceptance-rate", f"{least - 0.02:.2f}")["strategy"]["draft_kind"] == "none"


def test_a_draft_that_never_pays_says_so() -> None:
    short = ["--batch-size", "1", "--context-len", "100"]
    words = shown("plan", *WHERE, *short, "--draft", "self", "--kv-policy", "pq")
    (row,) = [line for line in words.splitlines() if "at any acceptance" in line]
    assert "at any acceptance rate" in row


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
    assert "$/M" in words
    found = answered(*asked, "--objective", "cost")
    per_s = found["serving"]["predicted_throughput_tokens_per_s"] * (32_000 + 128) / 128  # prompts and outputs
    assert found["cost"]["per_million_tokens"] == pytest.approx(8 * 2.5 / 3600 / per_s * 1e6)
    assert f"{found['cost']['per_million_tokens']:.2f}" in words
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


# Predictions of every kind of draft.


@pytest.mark.parametrize("draft", ["eagle3", "ngram"])
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
    assert f"it pays from an acceptance rate of {least:.2f}" in " ".join(shown(*PREDICT, "--draft", "ngram").split())
    for other in GAMMAS:
        assert answered(*PREDICT, "--draft", "ngram", "--gamma", str(other))["minimum_useful_acceptance_rate"] >= least


def test_a_borrowed_acceptance_is_said_and_widens_the_interval() -> None:
    asked = ["predict", "--model", "qwen3.5-27b", *WHERE[2:], "--batch-size", "8", "--context-len", "8k", "--draft", "mtp"]
    borrowed = answered(*asked, "--gamma", "1")
    assert any("assumed equal to that of Qwen3.8-27B" in note for note in borrowed["notes"])
    rate = str(borrowed["acceptance_rate"])
    given = answered(*asked, "--gamma", "1", "--acceptance-rate", rate)
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


def test_the_field_report_as_a_user_would_ask_it() -> None:
    """Llama-3.1-8B with 257 SnapKV entries and gamma 2 on 8 A100 of 40 GB at 32k: no speedup at any batch up to 48."""
    report = ["--context-len", "32k", "--kv-policy", "snapkv", "--kv-budget", "257", "--gamma", "2"]
    verdicts = {}
    for batch in ("1", "8", "16", "48"):
        words = shown("predict", *UNCALIBRATED, "--batch-size", batch, *report)
        assert "extrapolated" in words
        assert "not calibrated" in words
        verdicts[batch] = words.split(":")[0]
    assert set(list(verdicts.values())[:3]) == {"Within the uncertainty, do not speculate"}
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
    result = call(*asked, "--json")
    document, words = json.loads(result.stdout), result.stderr
    assert 3000 <= document["critical_context_len"] <= 5500
    assert document["ridge_points_flop_per_byte"]["bfloat16"] == pytest.approx(153, abs=1)
    needed = [row["minimum_acceptance_rate"] for row in document["budgets"]]
    assert needed == sorted(needed)
    for row in document["budgets"]:
        assert row["admissible"] == (row["acceptance_rate"] >= row["minimum_acceptance_rate"])
    assert isinstance(document["crossover_batch_size"], int)
    assert f"from a context of about {document['critical_context_len']:,.0f} tokens" in words
    assert f"overtakes llama-3.2-1b from batch size {document['crossover_batch_size']}" in words
    dearer = [row["minimum_acceptance_rate"] for row in answered(*asked, "--speedup", "1.4")["budgets"]]
    assert all(more is None or more > less for more, less in zip(dearer, needed, strict=True))
