"""`magicdec compare`: machines side by side, ranked by what tokens cost end to end, prompts included."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import answered, call, refused, shown

import magicdec

MACHINES = {"h100-sxm": 2.5, "h200-sxm": 3.2, "b200-sxm": 5.5}
ASKED = ["compare", "--model", "llama-3.1-70b", *(word for name in MACHINES for word in ("--hardware", name)), "--num-gpus", "8"]
ASKED += ["--context-len", "8k", "--output-len", "512", "--draft", "llama-3.2-1b", "--acceptance-rate", "0.75"]
PRICED = [*ASKED, "--gpu-price", ",".join(f"{name}={price}" for name, price in MACHINES.items())]


def test_the_ranking_is_the_same_in_table_and_json_and_that_of_a_hand_calculation() -> None:
    rows = answered(*PRICED)["rows"]
    costs = []
    for row in rows:
        seconds = 1e6 / (row["predicted_throughput_tokens_per_s"] * (8000 + 512) / 512)  # of a million tokens, prompts included
        costs.append(8 * MACHINES[row["hardware"]] / 3600 * seconds)
        assert row["cost_per_million_tokens"] == pytest.approx(costs[-1])
        share = row["cost_per_million_input_tokens"] * 8000 + row["cost_per_million_output_tokens"] * 512
        assert share == pytest.approx(costs[-1] * 8512)
    assert costs == sorted(costs)
    tables = shown(*PRICED).split("\n\n")
    assert max(len(line) for table in tables for line in table.splitlines()) <= 80
    for table in tables[1:3]:
        assert [line.split()[2] for line in table.splitlines()[2:]] == [row["hardware"] for row in rows]
    for row, line in zip(rows, tables[2].splitlines()[2:], strict=True):
        assert f" {row['cost_per_million_tokens']:.3f} " in line
        assert line.endswith(row["basis"])


def test_the_hand_calculation_of_the_docs_is_right_and_is_the_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "answers.md").read_text(encoding="utf-8")
    words = re.search(r"\*\*By hand\.\*\*(.*?)\n\n", page, re.DOTALL)
    assert words is not None
    text = " ".join(words[1].split())
    (batch, ttft_ms), (output, tpot_ms) = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) x ([\d.]+) ms", text)]
    cycle_s = batch * ttft_ms / 1e3 + output * tpot_ms / 1e3
    paid = 20 / 3600 * cycle_s
    cost = paid / (batch * (8000 + output)) * 1e6
    expected = {r"these ([\d.]+) s": cycle_s, r"\$(0\.\d+) per million": cost, r"= \$(0\.\d+) in": paid}
    for pattern, found in expected.items():
        (number,) = re.findall(pattern, text)
        assert float(number) == pytest.approx(found, rel=3e-3)
    row = next(row for row in answered(*PRICED, "--max-tpot", "50ms")["rows"] if row["hardware"] == "h100-sxm")
    assert row["cost_per_million_tokens"] == pytest.approx(cost, rel=5e-3)


def test_a_row_is_what_plan_says_of_it() -> None:
    row = next(row for row in answered(*PRICED)["rows"] if row["hardware"] == "h200-sxm")
    alone = magicdec.plan(
        "llama-3.1-70b", "h200-sxm", num_gpus=8, batch_size=row["batch_size"], context_len=8000, output_len=512,
        draft="llama-3.2-1b", acceptance_rate=0.75, gpu_price=3.2,
    )  # fmt: skip
    assert alone.plan.cost is not None
    assert row["strategy"] == str(alone.strategy)
    assert row["cost_per_million_tokens"] == pytest.approx(alone.plan.cost.per_million_tokens)


def test_a_limit_moves_rows_to_smaller_batches_or_out_and_is_drawn(tmp_path: Path) -> None:
    free, held = answered(*ASKED)["rows"], answered(*ASKED, "--max-tpot", "10ms")["rows"]
    size = {row["hardware"]: row["batch_size"] for row in free}
    assert all(row["problem"] or row["batch_size"] < size[row["hardware"]] for row in held)
    assert all(row["problem"] or row["predicted_tpot_s"] <= 0.010 for row in held)
    figure = tmp_path / "curves.svg"
    shown(*ASKED, "--figure", figure)
    free_lines = figure.read_text().count("line2d")
    assert "replaced" not in call(*ASKED, "--max-tpot", "10ms", "--figure", figure).stdout
    assert figure.read_text().count("line2d") != free_lines
    assert "--figure" in refused(*ASKED, "--figure", tmp_path / "curves.bmp")


def test_what_cannot_be_served_is_said_beside_what_can() -> None:
    words = shown("compare", "--model", "llama-3.1-70b", "--hardware", "l4", "--hardware", "h200-sxm", "--context-len", "8k",
                  "--output-len", "512", "--num-gpus", "2")  # fmt: skip
    assert "2 x l4: memory of one GPU" in words
    assert "2 x h200-sxm is best per GPU" in words.replace("\n", " ")


def test_layouts_are_rows_and_a_load_takes_whole_replicas() -> None:
    layouts = [*ASKED, "--tensor-parallel", "1-8", "--requests-per-s", "4"]
    rows = answered(*layouts, "--weight-dtype", "fp8", "--max-tpot", "50ms")["rows"]
    served = {(row["hardware"], row["tensor_parallel"]): row for row in rows if not row["problem"]}
    assert {shared_by for name, shared_by in served if name == "h200-sxm"} == {1, 2, 4, 8}
    for (_, shared_by), row in served.items():
        rate = row["predicted_throughput_tokens_per_s"] / 512 / 8  # requests a second of a GPU
        assert row["gpus_for_load"] % shared_by == 0
        assert 4 <= row["gpus_for_load"] * rate < 4 + shared_by * rate + 1e-9


def test_layouts_over_pcie_that_make_no_sense_are_said_to_be_so() -> None:
    words = shown("compare", "--model", "llama-3.1-8b", "--hardware", "l4", "--num-gpus", "8", "--tensor-parallel", "1-8",
                  "--context-len", "1k", "--output-len", "256")  # fmt: skip
    assert "8 x l4 at TP 8: communication takes" in words


@pytest.mark.parametrize("form", ["csv", "md", "jsonl"])
def test_rows_are_printed_and_written_in_every_format(form: str, tmp_path: Path) -> None:
    rows, file = answered(*PRICED)["rows"], tmp_path / f"rows.{form}"
    printed = call(*PRICED, f"--{form}", "-o", file)
    assert printed.stdout == file.read_text()
    assert "cheapest" in printed.stderr
    if form == "jsonl":
        assert [json.loads(line) for line in printed.stdout.splitlines()] == rows
    else:
        head, *lines = printed.stdout.splitlines()
        assert all(name in head for name in rows[0])
        assert len(lines) - (form == "md") == len(rows)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--tensor-parallel", "3"], "--tensor-parallel: expected divisors of 8 GPUs"),
        (["--gpu-price", "a100=2"], "prices of the machines compared"),
        (["--gpu-price", "h100-sxm=2"], "h200-sxm too"),
        (["--gpu-price", "cheap"], "HARDWARE=DOLLARS"),
        (["--max-tpot", "1us"], "times the limit"),
        (["--max-ttft", "1ms"], "times the limit"),
        (["--engine", "vlm"], "did you mean vllm?"),
    ],
)
def test_bad_input_is_one_message(more: list[str], expected: str) -> None:
    result = call(*ASKED, *more)
    assert result.exit_code == 2
    assert expected in result.stderr
