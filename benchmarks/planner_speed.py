"""How fast strategies are planned, on one core, with GenZ and llm-analysis timed in the same run where they are installed.

A point is one strategy for one situation: batch size, context, gamma and KV budget. Every point gets its step times, tokens
per round, speedup with its interval, and whether it fits in memory; `costmodel.sweep` also finds the best of each cell.
"""

from __future__ import annotations

import os

os.environ.update({name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import evaluation_times, installed_peers

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.planning.sweep import sweep
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.executor.system.machine import peak_memory_bytes
from magicdec.render.tables import text_table as table

GAMMAS, KV_BUDGETS = range(1, 17), [64 * 2**i for i in range(8)]
CONTEXTS = np.linspace(1000, 128_000, 100).astype(int).tolist()
SIZES = (1_000_000, 4_000_000, 16_000_000)
LARGEST = 100_000_000


def swept(points: int) -> Callable[[], object]:
    """A map of about so many points, for Llama-3.1-8B on 8 H100."""
    deployment = Deployment(resolve_model("llama-3.1-8b"), resolve_profile("h100-sxm"), 8, 8)
    batches = range(1, max(1, points // (len(CONTEXTS) * len(GAMMAS) * len(KV_BUDGETS))) + 1)
    draft = Draft("self", "streaming_llm")
    return lambda: sweep(
        deployment,
        [draft],
        batch_sizes=batches,
        context_lens=CONTEXTS,
        gammas=GAMMAS,
        kv_budgets=KV_BUDGETS,
        curves=published_curves(),
    )


def points_of(points: int) -> int:
    """What `swept(points)` really evaluates."""
    per_batch = len(CONTEXTS) * len(GAMMAS) * len(KV_BUDGETS)
    return max(1, points // per_batch) * per_batch


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time, after one call that is not counted. [s]"""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def cold_start_ratio(repeats: int = 7) -> float:
    """Time of `magicdec plan` from nothing to the printed answer, over that of importing numpy, yaml and click; taking turns."""
    imports = [sys.executable, "-c", "import numpy, yaml, click"]
    plan = [sys.executable, "-m", "magicdec", "plan", "--model", "llama-3.1-8b", "--hardware", "h100-sxm"]
    plan += ["--num-gpus", "8", "--batch-size", "64", "--context-len", "32k"]

    def run(command: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    turns = [(run(imports), run(plan)) for _ in range(repeats + 1)][1:]
    base_s, plan_s = (statistics.median(column) for column in zip(*turns, strict=True))
    return plan_s / base_s


def measured() -> dict[str, Any]:
    """Rates by size of the map, memory with the largest, and what a call of each peer takes."""
    rates = {points_of(size): points_of(size) / seconds(swept(size), 3) for size in SIZES}
    before = peak_memory_bytes()
    started = time.perf_counter()
    swept(LARGEST)()
    largest_s = time.perf_counter() - started
    after = peak_memory_bytes()
    tools, missing = installed_peers()
    peers = evaluation_times(tools)
    return {
        "points_per_s": rates[points_of(SIZES[-1])],
        "points_per_s_by_size": rates,
        "largest_points": points_of(LARGEST),
        "largest_s": largest_s,
        "largest_points_per_s": points_of(LARGEST) / largest_s,
        "peak_memory_bytes": after,
        "peak_memory_growth_of_largest_bytes": after - before,
        "cold_start_ratio": cold_start_ratio(),
        "peer_s_per_evaluation": peers,
        "peers_not_installed": missing,
    }


def main() -> None:
    document = measured()
    if "--json" in sys.argv[1:]:
        print(json.dumps(document, indent=2))
        return
    rows = [[f"{points:,}", f"{rate / 1e6:.1f} M"] for points, rate in document["points_per_s_by_size"].items()]
    rows.append([f"{document['largest_points']:,}", f"{document['largest_points_per_s'] / 1e6:.1f} M"])
    growth, peak = document["peak_memory_growth_of_largest_bytes"], document["peak_memory_bytes"]
    peers = [[name, f"{1e6 * taken:.1f} µs"] for name, taken in document["peer_s_per_evaluation"].items()]
    print(table(["points in the map", "points/s, one core"], rows))
    print(f"\npeak memory {peak / 1e6:.0f} MB, of which the largest map added {growth / 1e6:.0f} MB")
    print(f"`magicdec plan`, cold, takes {document['cold_start_ratio']:.2f}x the time of importing numpy, yaml and click\n")
    print(table(["one evaluation of", "takes"], peers))
    for name, reason in document["peers_not_installed"].items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
