"""Errors of engine profiles on measurements that a fit has not seen.

For each engine, some numbers of one class of machines are fitted again without a part of the published rows, from the defaults of
their laws, and the part is predicted. Numbers that are not named in `CASES` stay as shipped, such as tile sizes. `all rows` is
the same fit with nothing left out, `shipped` is the profile as it is. `other class` prices a class with the terms of the class
that stands in for unknown ones.

    python benchmarks/engine_leftout.py FOLDER [--case llama.cpp]

FOLDER holds the files of measurements that docs/accuracy.md names. Prints the numbers fitted to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from magicdec.costmodel.base.csv_text import read_csv
from magicdec.costmodel.calibration.fitting import bounds_of, fit_values
from magicdec.costmodel.engines.machines import MachineClass, machine_class
from magicdec.costmodel.engines.profile import EngineProfile, MachineTerms
from magicdec.costmodel.hardware.profile import EngineLaw
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.collectives import AllreduceLaw
from magicdec.costmodel.kernels.gemm import GemmLaw
from magicdec.costmodel.kernels.quantised import QuantisedLaw
from magicdec.costmodel.models.transformer import model_kind
from magicdec.field.columns import said_by_name
from magicdec.field.pricing import PricedRow, price_rows
from magicdec.field.settings import Setting, setting_of
from magicdec.render.tables import text_table

Row = dict[str, str]
Values = dict[str, float]
LAWS = {"engine": EngineLaw, "attention": AttentionLaw, "quantised": QuantisedLaw, "allreduce": AllreduceLaw, "gemm": GemmLaw}
START = {"engine.several_rows_s": 2e-5, "engine.round_overhead_s": 1e-3}  # where the default of a law is 0
WIDTH = 1.5  # of the prior around a default: a number that no row determines stays there [log]
FITTED = ("plain rate", "speedup", "round cost", "step", "forward pass")
LLAMA = ("engine.layer_overhead_s", "engine.several_rows_s", "engine.round_overhead_s", "attention.memory_efficiency",
         "quantised.memory_efficiency", "quantised.vector_efficiency", "quantised.vector_sharpness")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An engine on one class of machines: its files, its numbers, and how rows are left out."""

    engine: str
    kind: MachineClass
    files: tuple[str, ...]
    numbers: tuple[str, ...]
    splits: tuple[str, ...]
    no_acceptance: tuple[str, ...] = ()  # files whose rows do not give it: only plain rates count
    tasks: tuple[str, ...] = ()  # only these, where all would take long


CASES: dict[str, Case] = {
    "vllm": Case(
        "vllm",
        "hopper",
        ("vllm028_h100_decode_steps_qwen3_1p7b.csv", "vllm028_h100_verify_steps_minicpm5_2b.csv"),
        ("engine.layer_overhead_s", "attention.sharpness", "attention.memory_efficiency"),
        ("half", "file"),
    ),
    "llama.cpp": Case(
        "llama.cpp",
        "cuda-card",
        (
            "mtp_nmax_sweeps.csv",
            "llamacpp_rtx3090_round_cost_by_width.csv",
            "llamacpp_rtx3090_by_context.csv",
            "mtp_by_context.csv",
        ),
        (*LLAMA, "quantised.batched_efficiency", "allreduce.peer_latency_s"),
        ("machine",),
        ("mtp_by_context.csv",),
    ),
    "llama.cpp-amd": Case(
        "llama.cpp",
        "amd-card",
        ("mtp_nmax_sweeps.csv",),
        ("engine.round_overhead_s", "quantised.memory_efficiency", "quantised.vector_efficiency"),
        ("machine", "class"),
    ),
    "llama.cpp-apple": Case("llama.cpp", "apple", ("mtp_nmax_sweeps.csv",), (), ("class",)),
    "llama.cpp-unified": Case(
        "llama.cpp",
        "unified",
        ("llamacpp_dgx_spark_batched_bench.csv",),
        (
            "engine.layer_overhead_s",
            "engine.several_rows_s",
            "attention.memory_efficiency",
            "quantised.memory_efficiency",
            "quantised.vector_efficiency",
            "quantised.batched_memory_efficiency",
            "quantised.batched_efficiency",
        ),
        ("half", "model", "kind", "class"),
    ),
    "sglang": Case(
        "sglang",
        "hopper",
        ("specbundle_sglang_eagle3_throughput.csv",),
        (
            "engine.layer_overhead_s",
            "engine.round_overhead_s",
            "engine.draft_step_s",
            "engine.tree_s",
            "engine.server_step_s",
            "engine.state_update_s",
            "engine.state_verify_s",
        ),
        ("model",),
        tasks=("gsm8k", "mtbench"),
    ),
}
ZERO_STARTS = {"engine.draft_step_s": 1e-4, "engine.tree_s": 1e-4, "engine.server_step_s": 1e-4, "engine.state_update_s": 1e-5,
               "engine.state_verify_s": 1e-5}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A row of a file, with what it can be left out by."""

    file: str
    row: Row
    machine: str
    model: str
    kind: str
    index: int


def read_rows(folder: Path, case: Case) -> list[Known]:
    """The rows of a case, on its class of machines, without drafts whose network is assumed."""
    found: list[Known] = []
    for name in case.files:
        _, rows = read_csv(str(folder / name), "measurements", loose=True)
        for index, (_, row) in enumerate(rows):
            if "dflash" in row.get("draft", "") or (case.tasks and row.get("task") not in case.tasks):
                continue
            setting = setting_of(row, said_by_name(name), window=False)
            deployment = setting.scenario.deployment
            if machine_class(deployment.hardware) == case.kind:
                machine = deployment.hardware.name.partition(",")[0]
                found.append(Known(name, row, machine, deployment.target.name, model_kind(deployment.target), index))
    return found


def parts(case: Case, split: str, known: list[Known]) -> Iterator[tuple[str, set[int]]]:
    """What is left out in turn: its name and the places of its rows."""
    keys: dict[str, Callable[[Known], str]] = {
        "half": lambda one: "even rows" if one.index % 2 == 0 else "odd rows",
        "file": lambda one: one.file,
        "machine": lambda one: one.machine,
        "model": lambda one: one.model.partition("-Q")[0],
        "kind": lambda one: one.kind,
    }
    names = [keys[split](one) for one in known]
    for name in sorted(set(names)):
        yield name, {place for place, of in enumerate(names) if of == name}


def with_numbers(terms: MachineTerms, values: Mapping[str, float]) -> MachineTerms:
    """Terms with other values of some numbers."""
    for key, value in values.items():
        law, _, name = key.partition(".")
        if law in ("engine", "quantised"):
            terms = replace(terms, **{law: replace(getattr(terms, law), **{name: value})})
        else:
            terms = replace(terms, **{law: {**getattr(terms, law), name: value}})
    return terms


def changed_engine(engine: EngineProfile, kind: MachineClass, terms: MachineTerms) -> EngineProfile:
    """The engine with these terms for a class of machines."""
    others = tuple(one for one in engine.machines if kind not in one.classes)
    return replace(engine, machines=(replace(terms, classes=(kind,)), *others))


def priced(
    known: list[Known], case: Case, change: Callable[[EngineProfile], EngineProfile]
) -> list[list[tuple[str, float, float]]]:
    """(quantity, measured, predicted) of every row, with an engine that was changed."""

    def setting(of: Setting) -> Setting:
        deployment = of.scenario.deployment
        assert deployment.engine is not None
        engine = change(deployment.engine)
        hardware = engine.on(deployment.hardware)
        return replace(of, scenario=replace(of.scenario, deployment=replace(deployment, hardware=hardware, engine=engine)))

    found: list[list[tuple[str, float, float]]] = [[] for _ in known]
    for file in case.files:
        places = [place for place, one in enumerate(known) if one.file == file]
        lines: list[PricedRow] = price_rows(file, [known[place].row for place in places], setting)
        plain_only = file in case.no_acceptance
        for place, line in zip(places, lines, strict=True):
            found[place] = [
                (one.quantity, one.measured, one.predicted)
                for one in line.compared
                if not plain_only or one.quantity == "plain rate"
            ]
    return found


def fit(known: list[Known], case: Case) -> Values:
    """Numbers fitted to some rows, from the defaults of their laws."""
    start, bounds = {}, {}
    for key in case.numbers:
        law, _, name = key.partition(".")
        default = float(getattr(LAWS[law](), name))
        start[key] = ZERO_STARTS.get(key, START.get(key, default)) or 1e-5
        bounds[key] = bounds_of(LAWS[law], name)

    def log_ratios(values: Values) -> np.ndarray:
        rows = priced(known, case, lambda engine: _with(engine, case, values))
        return np.log([predicted / measured for row in rows for quantity, measured, predicted in row if quantity in FITTED])

    return fit_values(start, bounds, log_ratios, spread=dict.fromkeys(start, WIDTH))


def _with(engine: EngineProfile, case: Case, values: Mapping[str, float]) -> EngineProfile:
    terms = next(one for one in engine.machines if case.kind in one.classes)
    return changed_engine(engine, case.kind, with_numbers(terms, values))


def _stand_in(engine: EngineProfile, case: Case) -> EngineProfile:
    return changed_engine(engine, case.kind, engine.machines[0])


def lines_of(case: Case, what: str, rows: list[list[tuple[str, float, float]]]) -> list[list[str]]:
    """Errors by quantity; of the best length the differences."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        for quantity, measured, predicted in row:
            error = predicted - measured if quantity == "best gamma" else predicted / measured - 1
            groups.setdefault(quantity, []).append(abs(error))
    found = []
    for quantity, errors in groups.items():
        shown = [
            f"{value:.1f}" if quantity == "best gamma" else f"{value:.1%}"
            for value in (*np.quantile(errors, (0.5, 0.9)), max(errors))
        ]
        found.append([case.engine, case.kind, what, quantity, str(len(errors)), *shown])
    return found


def judged(case: Case, folder: Path) -> list[list[str]]:
    """All lines of one case."""
    known = read_rows(folder, case)
    found = lines_of(case, "shipped", priced(known, case, lambda engine: engine))
    if case.numbers:
        values = fit(known, case)
        print(f"{case.engine} {case.kind}, all rows: {values}", file=sys.stderr)
        found += lines_of(case, "all rows", priced(known, case, lambda engine: _with(engine, case, values)))
    for split in case.splits:
        if split == "class":
            found += lines_of(case, "other class", priced(known, case, lambda engine: _stand_in(engine, case)))
            continue
        joined: list[list[tuple[str, float, float]]] = []
        names = list(parts(case, split, known))
        for name, places in names:
            values = fit([one for place, one in enumerate(known) if place not in places], case)
            print(f"{case.engine} {case.kind}, without {name}: {values}", file=sys.stderr)
            out = priced(known, case, lambda engine, values=values: _with(engine, case, values))  # type: ignore[misc]
            out = [row for place, row in enumerate(out) if place in places]
            found += lines_of(case, f"without {name}", out)
            joined += out
        found += lines_of(case, f"each {split} left out", joined)
    return found


def main() -> int:
    """Print the errors of the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with the files of measurements")
    parser.add_argument("--case", choices=CASES, action="append")
    args = parser.parse_args()
    if args.folder is None or not args.folder.is_dir():
        print("Skipped: no folder with files of measurements was given.")
        return 0
    lines = [line for name in args.case or CASES for line in judged(CASES[name], args.folder)]
    print(text_table(["engine", "class", "rows were", "quantity", "rows", "median", "90 %", "worst"], lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
