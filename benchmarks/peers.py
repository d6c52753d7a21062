"""Other planners beside magicdec on the same published step times (arXiv 2408.11049), in one run: errors, and time per evaluation.

    python benchmarks/peers.py [--json]

Peers, each imported only when it is its turn; one that is not installed gets a line that says so. They declare more than they
need here, some of it in versions of long ago, so install them into an environment of their own:

    pip install --no-deps genz-llm llm-analysis aiconfigurator aiconfigurator-core==0.12.0
    pip install paretoset plotly kaleido seaborn ipython fire pyarrow prettytable munch plotext

Every peer was given the same shapes (those of `costmodel/model_configs`), 16 bits, the tensor parallelism of the row, and the
peaks and efficiencies that it ships for the GPU:

- GenZ: `decode_moddeling(input_tokens=context, output_tokens=0, Bb=1)`, systems `A100_80GB_GPU` and `H100_GPU`, `system_eff` 1.
  Verification as in its `spec_decode_modeling`: `create_full_chunked_model(prefill_kv_sizes=[(context, gamma + 1)])` at the batch
  size. It leaves its layer tables in /tmp/genz.
- llm-analysis: `LLMAnalysis.inference(seq_len=1, num_tokens_to_generate=context - 1)["decode_latency"]`, which is priced at the end
  of the generation; a long prompt would be refused where its prefill in one piece does not fit. Efficiencies 1; sequence parallel
  as in its `infer`. The three matrices of a gated MLP are given as two with as many weights, which its own reading of a Hugging
  Face configuration misses. It charges the whole KV cache twice, as load and store.
- AIConfigurator: `EngineHandle.predict_decode_latency(batch, isl=context, osl=2)`, the same numbers as `cli_estimate(...,
  mode="static_gen")`, for the default kernel tables of each of its three engines. Verification as its MTP does it
  (`nextn=gamma`), less what it adds for the draft layers; and, as no query length goes with a long cache there, as a prefill
  behind a cached prefix (`predict_prefill_latency(batch, context + gamma + 1, prefix=context)`).

No peer has a draft with a KV budget. What a user could still do by hand is done for them: draft steps are gamma decode steps at a
context as long as the budget, a small draft on as many GPUs as it has KV heads; the speedup is target step x published tokens per
round / (draft steps + verify step).

`magicdec` are the shipped profiles, whose engine parameters were fitted to these very rows; `model left out` refits them without
the model that is asked about. `nothing fitted` is the one to hold against peers: kernels as fitted to the public tables that
AIConfigurator looks up too, engine and all-reduce at their defaults, no parameter from these rows. It is not quite blind: the laws
and those defaults were written by people who had seen the rows. Nor do peers model the engine that was measured: GenZ and
llm-analysis model none, AIConfigurator newer ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.calibration.engine_fit import MeasuredPass, Observation, observations_of, predicted_s, published_rows
from magicdec.costmodel.calibration.published_rows import NOT_FITTED, Comparison, left_out_comparisons, step_comparisons
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import Calibration, EngineLaw, HardwareProfile
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid
from magicdec.render.tables import text_table as table

QUANTITIES = ("target step", "verify step", "draft steps", "speedup")
UNFITTED = "magicdec, nothing fitted"
GENZ_SYSTEMS = {"a100-sxm-80gb": "A100_80GB_GPU", "h100-sxm": "H100_GPU"}
LLM_ANALYSIS_GPUS = {"a100-sxm-80gb": "a100-sxm-80gb", "h100-sxm": "h100-sxm-80gb"}
AIC_SYSTEMS = {"a100-sxm-80gb": "a100_sxm", "h100-sxm": "h100_sxm"}  # of the L40 it has no tables, of the L40S only
AIC_ENGINES = ("trtllm", "sglang", "vllm")


class NotExpressibleError(Exception):
    """The tool has no way to ask this; the message is what is missing, in a few words."""


@dataclass(frozen=True)
class Tool:
    """A planner that is asked for the time of a pass.

    Attributes:
        name: For the table.
        pass_s: GPU (as a profile is named) and pass, to its time; raises `NotExpressibleError`. [s]
        quantities: What it is asked for.
        round_overhead_s: What it adds to a speculative round. [s]
    """

    name: str
    pass_s: Callable[[str, MeasuredPass], float]
    quantities: tuple[str, ...] = QUANTITIES
    round_overhead_s: float = 0.0


@dataclass(frozen=True)
class Errors:
    """One row of the table; absolute relative errors, none where no row could be expressed.

    Attributes:
        rows, out_of: Distinct measurements that the tool can express, and that there are.
        unfitted_mean: Mean error of magicdec with nothing fitted, on the same rows as a peer.
        cannot_express: What the other rows lack.
    """

    tool: str
    quantity: str
    rows: int
    out_of: int
    median: float | None = None
    mean: float | None = None
    worst: float | None = None
    worst_row: str = ""
    unfitted_mean: float | None = None
    cannot_express: tuple[str, ...] = ()


@dataclass
class Answers:
    """What a tool answered, and why not more."""

    name: str
    quantities: tuple[str, ...]
    comparisons: list[Comparison] = field(default_factory=list)
    lacking: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, row: dict[str, str], quantity: str, label: str, measured: float, predicted: float) -> None:
        """Put a prediction beside its measurement."""
        self.comparisons.append(Comparison(row["hardware"], row["target"], quantity, NOT_FITTED, label, measured, predicted))

    def lack(self, quantity: str, reason: str) -> None:
        """Note why there is none."""
        self.lacking.setdefault(quantity, {})[reason] = None


def ask(tool: Tool) -> Answers:
    """What a tool says of the published rows; a target step that several rows share counts once."""
    answers = Answers(tool.name, tool.quantities)
    for row in published_rows("magicdec_timings"):
        context = f"{row['batch_size']} x {row['context_len']}"
        draft = f"{row['draft_model'] or 'self'} {row['kv_policy']} {row['kv_budget']}"
        label = f"{context}, {draft}, gamma {row['gamma']}, {row['table']}"
        seconds: dict[str, float] = {}
        for quantity, one in observations_of(row, unfitted(row["hardware"])).items():
            try:
                seconds[quantity] = sum(p.times * tool.pass_s(row["hardware"], p) for p in one.passes)
            except NotExpressibleError as reason:
                answers.lack(quantity, str(reason))
                answers.lack("speedup", str(reason))
            else:
                answers.add(row, quantity, context if quantity == "target step" else label, one.measured_s, seconds[quantity])
        if len(seconds) == 3:
            round_s = seconds["draft steps"] + seconds["verify step"] + tool.round_overhead_s
            speedup = seconds["target step"] * float(row["mean_acceptance_length"]) / round_s
            answers.add(row, "speedup", label, float(row["measured_speedup"]), speedup)
    answers.comparisons = list(dict.fromkeys(answers.comparisons))
    return answers


def errors_of(answers: Answers, unfitted_errors: dict[tuple[str, ...], float]) -> list[Errors]:
    """The rows of a tool in the table."""
    totals = Counter(quantity for _, quantity, *_ in unfitted_errors)
    return [_errors(answers, quantity, totals[quantity], unfitted_errors) for quantity in answers.quantities]


def _errors(answers: Answers, quantity: str, out_of: int, unfitted_errors: dict[tuple[str, ...], float]) -> Errors:
    found = [one for one in answers.comparisons if one.quantity == quantity]
    lacking = tuple(answers.lacking.get(quantity, ()))
    if not found:
        return Errors(answers.name, quantity, 0, out_of, cannot_express=lacking)
    sizes = np.abs([one.error for one in found])
    beside = [] if answers.name.startswith("magicdec") else [unfitted_errors[key_of(one)] for one in found]
    return Errors(
        answers.name,
        quantity,
        len(found),
        out_of,
        float(np.median(sizes)),
        float(sizes.mean()),
        float(sizes.max()),
        f"{found[int(sizes.argmax())].hardware}, {found[int(sizes.argmax())].row}",
        statistics.fmean(beside) if beside else None,
        lacking,
    )


def key_of(one: Comparison) -> tuple[str, ...]:
    """Which measurement a comparison is about."""
    return one.hardware, one.quantity, one.row, str(one.measured)


# magicdec


@cache
def unfitted(hardware: str) -> HardwareProfile:
    """A profile with kernels from public tables and default engine and all-reduce: nothing from the published rows."""
    profile = resolve_profile(hardware)
    kernels = profile.calibration
    return replace(profile, calibration=Calibration(kernels.gemm, kernels.table_attention or kernels.attention))


def unfitted_tool() -> Tool:
    """magicdec with nothing fitted to the published rows."""

    def pass_s(hardware: str, one: MeasuredPass) -> float:
        return predicted_s(unfitted(hardware), Observation((replace(one, times=1),), 0.0))

    return Tool(UNFITTED, pass_s, round_overhead_s=EngineLaw().round_overhead_s)


def fitted_answers() -> list[Answers]:
    """magicdec as shipped, and refitted without the model that is asked about."""
    left_out = Answers("magicdec, model left out", QUANTITIES[:3], left_out_comparisons())
    for quantity in QUANTITIES[:3]:
        left_out.lack(quantity, "GPUs with rows of one model")
    return [Answers("magicdec", QUANTITIES, step_comparisons()), left_out]


# Peers


def entries_of(one: MeasuredPass) -> int:
    """KV entries per sequence that a pass reads, for tools without a KV budget."""
    return int(min(one.context_len, one.kv_budget))


def known(names: dict[str, str], hardware: str) -> str:
    """What a tool calls a GPU."""
    if hardware not in names:
        raise NotExpressibleError(hardware.upper())
    return names[hardware]


def genz_tools() -> list[Tool]:
    """GenZ (genz-llm)."""
    genz, models, systems = import_module("GenZ"), import_module("GenZ.Models"), import_module("GenZ.LLM_inference")
    unit = genz.Unit()

    @cache
    def shape(model: TransformerConfig) -> Any:
        return genz.ModelConfig(
            model=model.name,
            vocab_size=model.vocab_size,
            max_model_len=model.max_context_len,
            hidden_size=model.d_model,
            intermediate_size=model.d_ff,
            num_ffi=2,
            num_decoder_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim,
        )

    def decode_s(system: str, one: MeasuredPass) -> float:
        try:
            said = genz.decode_moddeling(
                model=shape(one.model),
                batch_size=one.batch_size,
                input_tokens=entries_of(one),
                output_tokens=0,
                Bb=1,
                system_name=system,
                bits="bf16",
                tensor_parallel=one.tensor_parallel,
            )
        except ValueError as error:  # by its count, it does not fit in memory
            raise NotExpressibleError(str(error).partition(".")[0]) from None
        return float(said["Latency"]) / 1e3

    def chunk_s(system: str, one: MeasuredPass) -> float:
        chunk = models.create_full_chunked_model(
            name=shape(one.model),
            prefill_kv_sizes=[(entries_of(one), one.query_len)],
            decode_kv_sizes=[],
            tensor_parallel=one.tensor_parallel,
        )
        operators = genz.get_model_df(
            chunk, systems.get_inference_system(system, bits="bf16"), unit, one.batch_size, intermediate_on_chip=True
        )
        return float(genz.get_summary_table(operators, unit)[f"Latency ({unit.unit_time})"].iloc[0]) / 1e3

    def pass_s(hardware: str, one: MeasuredPass) -> float:
        return (decode_s if one.query_len == 1 else chunk_s)(known(GENZ_SYSTEMS, hardware), one)

    return [Tool(f"GenZ {version('genz-llm')}", cache(pass_s))]


def llm_analysis_tools() -> list[Tool]:
    """llm-analysis."""
    analysis, config = import_module("llm_analysis.analysis"), import_module("llm_analysis.config")

    @cache
    def priced(gpu: str, model: TransformerConfig, tensor_parallel: int) -> Any:
        shape = config.ModelConfig(
            model.name,
            model.num_layers,
            model.num_heads,
            model.d_model,
            model.vocab_size,
            num_key_value_heads=model.num_kv_heads,
            ffn_embed_dim=3 * model.d_ff // 2,
            expansion_ratio=1.5 * model.d_ff / model.d_model,
        )
        dtypes, parallel = config.get_dtype_config_by_name("w16a16e16"), config.ParallelismConfig(tp_size=tensor_parallel)
        return analysis.LLMAnalysis(shape, config.get_gpu_config_by_name(gpu), dtypes, parallel)

    def pass_s(hardware: str, one: MeasuredPass) -> float:
        gpu = known(LLM_ANALYSIS_GPUS, hardware)
        if one.query_len > 1:
            raise NotExpressibleError("several new tokens behind a KV cache")
        try:
            said = priced(gpu, one.model, one.tensor_parallel).inference(
                batch_size_per_gpu=one.batch_size, seq_len=1, num_tokens_to_generate=entries_of(one) - 1
            )
        except AssertionError as error:  # by its count, it does not fit in memory
            raise NotExpressibleError(str(error).partition(" =")[0]) from None
        return float(said["decode_latency"])

    return [Tool(f"llm-analysis {version('llm-analysis')}", pass_s)]


@cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the program ends."""
    return tempfile.TemporaryDirectory(prefix="peers-")


@cache
def config_folder(model: TransformerConfig) -> str:
    """A folder with the `config.json` of a built-in model, for tools that read Hugging Face checkpoints."""
    folder = Path(scratch().name) / model.name
    folder.mkdir()
    (folder / "config.json").write_text(builtin_configs()[model.name].read_text(encoding="utf-8"), encoding="utf-8")
    return str(folder)


def aiconfigurator_tools() -> list[Tool]:
    """AIConfigurator, by engine and by how it is asked for a verification."""
    engine, errors = import_module("aiconfigurator_core.sdk.engine"), import_module("aiconfigurator_core.sdk.errors")

    @cache
    def compiled(system: str, backend: str, model: TransformerConfig, tensor_parallel: int, nextn: int) -> Any:
        return engine.EngineHandle.compile(config_folder(model), system, backend, tp_size=tensor_parallel, nextn=nextn)

    def tool(backend: str, *, mtp: bool) -> Tool:
        def pass_s(hardware: str, one: MeasuredPass) -> float:
            batch, entries, nextn = one.batch_size, entries_of(one), (one.query_len - 1) * mtp
            try:
                handle = compiled(known(AIC_SYSTEMS, hardware), backend, one.model, one.tensor_parallel, nextn)
                if one.query_len > 1 and not mtp:
                    return float(handle.predict_prefill_latency(batch, entries + one.query_len, entries)) / 1e3
                layers = one.model.num_layers
                return float(handle.predict_decode_latency(batch, entries, 2)) / 1e3 * layers / (layers + nextn)
            except errors.PerfDataNotAvailableError:
                raise NotExpressibleError(f"attention of {one.model.name}, heads of {one.model.head_dim}") from None

        name = f"AIConfigurator {version('aiconfigurator-core')} {backend}"
        return Tool(name, pass_s) if mtp else Tool(f"{name}, as prefill", pass_s, ("verify step", "speedup"))

    return [tool(backend, mtp=mtp) for backend in AIC_ENGINES for mtp in (True, False)]


PEERS: dict[str, Callable[[], list[Tool]]] = {
    "genz-llm": genz_tools,
    "llm-analysis": llm_analysis_tools,
    "aiconfigurator-core": aiconfigurator_tools,
}


def installed_peers() -> tuple[list[Tool], dict[str, str]]:
    """Peers that can be imported, and what to do about the others, by package."""
    tools, missing = [], {}
    for package, load in PEERS.items():
        try:
            tools += load()
        except ImportError as error:
            missing[package] = f"not installed: pip install --no-deps {package} ({error})"
    return tools, missing


# Time per evaluation


def median_s(evaluate: Callable[[int], object], times: int) -> float:
    """Median time of a call, after one that does not count; each is asked something else. [s]"""
    evaluate(0)
    taken = []
    for i in range(1, times + 1):
        start = time.perf_counter()
        evaluate(i)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def evaluation_times(tools: Iterable[Tool]) -> dict[str, float]:
    """Time of one target step (batch 64, context near 8000, 8 A100) by tool, once it is loaded. [s]"""
    gpu, model = "a100-sxm-80gb", resolve_model("Llama-2-7B-32K")
    step = MeasuredPass(model, 64, 1, 8000, tensor_parallel=8)
    taken = {"magicdec, a speculative round in a grid of 48,000": grid_point_s(gpu, model)}
    for tool in tools:
        if "target step" in tool.quantities:
            taken[tool.name] = median_s(lambda i, tool=tool: tool.pass_s(gpu, replace(step, context_len=8000 + i)), 9)  # type: ignore[misc]
    try:
        estimate = import_module("aiconfigurator.cli.api").cli_estimate
    except ImportError:
        return taken
    folder, system = config_folder(model), AIC_SYSTEMS[gpu]
    taken["AIConfigurator, cli_estimate"] = median_s(
        lambda i: estimate(folder, system, mode="static_gen", isl=8000 + i, osl=2, batch_size=64, tp_size=8), 3
    )
    return taken


def grid_point_s(gpu: str, model: TransformerConfig) -> float:
    """Time of a point of a grid of batch, context, gamma and KV budget: steps, memory and speedup. [s]"""
    deployment, draft = Deployment(model, resolve_profile(gpu), 8, 8), Draft("self", "streaming_llm")
    axes = np.ix_(np.arange(1, 21), np.linspace(1e3, 32e3, 60).round(), np.arange(1, 9), np.geomspace(64, 1024, 5).round())

    def grid(i: int) -> object:
        b, s, g, k = axes
        return evaluate_grid(
            deployment, draft, batch_size=b, context_len=s + i, gamma=g, kv_budget=k, acceptance_rate=0.8
        ).round.speedup

    return median_s(grid, 5) / math.prod(axis.size for axis in axes)


# Output


def table_rows(errors: Iterable[Errors], missing: dict[str, str]) -> list[list[str]]:
    """Cells, a row a tool and quantity, and a row a peer that is missing."""
    rows = [
        [
            one.tool,
            one.quantity,
            f"{one.rows}/{one.out_of}",
            *("" if size is None else f"{size:.1%}" for size in (one.median, one.mean, one.worst, one.unfitted_mean)),
            "; ".join(one.cannot_express),
        ]
        for one in errors
    ]
    return rows + [[package, advice, *[""] * 6] for package, advice in missing.items()]


def report(errors: Sequence[Errors], missing: dict[str, str], taken: dict[str, float]) -> str:
    """What is printed for people."""
    header = ["tool", "quantity", "rows", "median", "mean", "worst", "unfitted", "cannot express"]
    notes = (
        "Absolute relative errors. `unfitted` is the mean error of `magicdec, nothing fitted` on the rows a peer can express.\n"
        "AIConfigurator's verify step is that of its MTP without the draft layers; `as prefill`, one behind a cached prefix.\n"
        "Draft steps and speedups of peers were put together by hand: none has a draft with a KV budget."
    )
    times = table(["one evaluation of", "takes"], [[name, format_seconds(seconds)] for name, seconds in taken.items()])
    return "\n".join([table(header, table_rows(errors, missing)), "", notes, "", times])


def main() -> None:
    parser = argparse.ArgumentParser(description="Other planners beside magicdec on the published step times.")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    as_json = parser.parse_args().json
    logging.disable(logging.WARNING)  # peers announce their defaults
    peers, missing = installed_peers()
    unfitted_one = unfitted_tool()
    answers = [*fitted_answers(), *map(ask, (unfitted_one, *peers))]
    unfitted_answers = next(one for one in answers if one.name == UNFITTED)
    unfitted_errors = {key_of(one): abs(one.error) for one in unfitted_answers.comparisons}
    errors = [row for one in answers for row in errors_of(one, unfitted_errors)]
    taken = evaluation_times([unfitted_one, *peers])
    if not as_json:
        print(report(errors, missing, taken))
        return
    comparisons = [{"tool": one.name, **asdict(c), "error": c.error} for one in answers for c in one.comparisons]
    document = {"errors": [asdict(one) for one in errors], "not_installed": missing, "evaluation_s": taken}
    print(json.dumps(document | {"comparisons": comparisons}, indent=2))


if __name__ == "__main__":
    main()
