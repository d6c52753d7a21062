"""Write figures as files, and one self-contained HTML page with all of them."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.plans.plan import Plan

from .planning import PlanningGrid
from .runs import TIMES, Run
from .style import Drawing, save

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
figure { margin: 2rem 0 } figure svg { width: 100%; height: auto } figcaption { color: #555 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
""".strip()


def write_page(
    folder: Path, drawings: Sequence[Drawing], grid: PlanningGrid, runs: Sequence[Run], plans: Sequence[Plan] = ()
) -> list[Path]:
    """Write every figure as PNG and SVG, and a self-contained `index.html`.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for drawing in drawings for path in _save(folder, drawing)]
        page = folder / "index.html"
        page.write_text(_page(drawings, grid, runs, plans), encoding="utf-8")
    except OSError as error:
        raise bad(folder, "", "a folder that can be written", error.strerror) from None
    return [page, *written]


def _save(folder: Path, drawing: Drawing) -> list[Path]:
    paths = {kind: folder / f"{drawing.name}.{kind}" for kind in ("png", "svg")}
    for kind, path in paths.items():
        save(drawing.figure, path, kind=kind)
    return list(paths.values())


def _page(drawings: Sequence[Drawing], grid: PlanningGrid, runs: Sequence[Run], plans: Sequence[Plan]) -> str:
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>magicdec: {html.escape(grid.heading)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(grid.heading)}</h1><p>{html.escape(_provenance(grid))}</p>",
        *(_plan_sentence(plan) for plan in plans),
        *(_run_table(run) for run in runs),
        *(_figure(drawing) for drawing in drawings),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _provenance(grid: PlanningGrid) -> str:
    return f"{grid.deployment.hardware.name}: {grid.deployment.hardware.provenance}."


def _figure(drawing: Drawing) -> str:
    svg = io.StringIO()
    save(drawing.figure, svg, kind="svg")
    inline = svg.getvalue()[svg.getvalue().index("<svg") :]
    caption = f"<figcaption>{html.escape(drawing.caption)}</figcaption>"
    return f"<h2>{html.escape(drawing.title)}</h2><figure>{inline}{caption}</figure>"


def _run_table(run: Run) -> str:
    table = run.table()
    times = [name for name in table.index if name in TIMES]
    table.loc[times, ["predicted", "measured"]] *= 1e3
    table["error"] = [f"{error:+.1%}" for error in table["error"]]
    table.index = pd.Index([f"{name} [ms]" if name in times else name for name in table.index])
    shown = table.to_html(float_format=lambda value: f"{value:.4g}", border=0)
    return f"<h2>{html.escape(run.label)}: {html.escape(str(run.plan.strategy))}</h2>{shown}"


def _plan_sentence(plan: Plan) -> str:
    p, w, where = plan.prediction, plan.workload, plan.hardware
    interval = f"{p.predicted_speedup:.2f}x ({p.predicted_speedup_low:.2f}x to {p.predicted_speedup_high:.2f}x)"
    place = f"{plan.target.name} on {where.num_gpus} x {where.name}, batch {w.batch_size}, context {w.context_len}"
    sentences = [f"Plan for {place}: {plan.strategy}; decoding {interval}."]
    served, limits = plan.serving, plan.limits
    types = [f"{what} in {dtype}" for what, dtype in (("weights", plan.target.weight_dtype), ("KV", plan.target.kv_dtype)) if dtype]
    if types:
        sentences.append(f"The target has its {' and '.join(types)}.")
    if served is not None and served.predicted_speedup is not None:
        ends = f"{served.predicted_speedup_low:.2f}x to {served.predicted_speedup_high:.2f}x"
        sentences.append(f"End to end, with {w.output_len} output tokens, {served.predicted_speedup:.2f}x ({ends}).")
    if limits is not None:
        held = {"TPOT": limits.max_tpot_s, "TTFT": limits.max_ttft_s}
        sentences += [f"{name} is at most {format_seconds(value)}." for name, value in held.items() if value]
    if plan.runner_up is not None:
        sentences.append(f"Runner-up: {plan.runner_up.strategy}, {plan.runner_up.predicted_speedup:.2f}x.")
    if plan.cost is not None:
        sentences.append(f"${plan.cost.per_million_tokens:.3f} per million tokens, prompts and outputs.")
    return f"<p>{html.escape(' '.join(sentences))}</p>"
