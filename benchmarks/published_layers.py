"""Predicted beside published times of layers that a dense decoder does not have, from the tables of aiconfigurator-core.

Experts, latent attention, chosen and compressed entries, delta rules; products in 8 and 4 bits, and prompts. Every price is what
`predict` adds for such a part of a layer on the shipped profile. Kernels are priced alone; a `block` is half a layer with its
projections and overhead. The package has only the convolution of Mamba-2, so that is left out.

    pip install pyarrow && pip install --no-deps --target tables aiconfigurator-core==0.12.0
    python benchmarks/published_layers.py tables
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from layer_rows import ENGINES, KINDS, Priced, priced_rows

from magicdec.costmodel.calibration.kernel_tables import SYSTEMS
from magicdec.render.tables import text_table

BANDS = (1, 4, 16, 64, 256, 1024, 4096)
Line = dict[str, str | int | float]


def errors(predicted: np.ndarray, measured: np.ndarray) -> Line:
    """Absolute relative errors of some rows, and the median of predicted over measured."""
    ratio = predicted / measured
    error = np.abs(ratio - 1)
    low, high = np.quantile(error, (0.5, 0.9))
    return {"rows": len(ratio), "median": float(low), "p90": float(high), "ratio": float(np.median(ratio))}


def joined(parts: Sequence[Priced]) -> Line:
    """Errors over several sets of rows."""
    return errors(np.concatenate([part.predicted_s for part in parts]), np.concatenate([part.measured_s for part in parts]))


def by_machine(parts: Sequence[Priced]) -> list[Line]:
    """A line per kind, machine and engine."""
    ordered = sorted(parts, key=lambda part: (part.kind, part.machine, part.engine))
    grouped = groupby(ordered, key=lambda part: (part.kind, part.machine, part.engine))
    return [{"kind": kind, "machine": machine, "engine": engine, **joined(list(of))} for (kind, machine, engine), of in grouped]


def by_tokens(parts: Iterable[Priced]) -> list[Line]:
    """A line per type of the experts' weights and band of tokens, over all machines and engines."""
    experts = [part for part in parts if part.kind == "experts"]
    lines: list[Line] = []
    for dtype in sorted({part.dtype for part in experts}):
        of = [part for part in experts if part.dtype == dtype]
        tokens, predicted, measured = (
            np.concatenate([getattr(part, name) for part in of]) for name in ("tokens", "predicted_s", "measured_s")
        )
        for low, high in zip((0, *BANDS), (*BANDS, np.inf), strict=True):
            kept = (tokens > low) & (tokens <= high)
            if kept.any():
                lines.append({"type": dtype, "tokens": f"{low + 1}-{high:g}", **errors(predicted[kept], measured[kept])})
    return lines


def table(lines: Sequence[Line], *, markdown: bool) -> str:
    """Lines as a table; errors in per cent."""
    headers = list(lines[0])
    rows = [[f"{100 * cell:.0f} %" if key in ("median", "p90") else f"{cell:.2f}" if key == "ratio" else f"{cell}"
             for key, cell in line.items()] for line in lines]  # fmt: skip
    if not markdown:
        return text_table(headers, rows)
    ruled = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where aiconfigurator-core is installed")
    parser.add_argument("--systems", nargs="+", default=[system for system in SYSTEMS if system != "b60"], metavar="SYSTEM")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        sys.exit("skipped: pyarrow is not installed (pip install pyarrow)")
    folder = arguments.folder / "aiconfigurator_core"
    folder = (folder if folder.is_dir() else arguments.folder) / "systems" / "data"
    if not folder.is_dir():
        sys.exit(f"skipped: no tables of aiconfigurator-core in {arguments.folder}")
    parts = [
        part for system in arguments.systems for engine in ENGINES for part in priced_rows(folder, system, engine, arguments.kinds)
    ]
    lines, bands = by_machine(parts), by_tokens(parts)
    if arguments.json:
        print(json.dumps({"by_machine": lines, "experts_by_tokens": bands}, indent=2))
        return
    print(table(lines, markdown=arguments.markdown))
    if bands:
        print("\n" + table(bands, markdown=arguments.markdown))


if __name__ == "__main__":
    main()
