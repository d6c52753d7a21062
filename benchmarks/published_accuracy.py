"""Predicted against published step times and speedups (arXiv 2408.11049), with the profiles as shipped: one table.

The profiles of these GPUs were fitted to the step times; the speedups at the best gamma were not used in any fit.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from importlib import resources

import numpy as np

from costmodel.calibrate import observations_of, predicted_s, published_timings
from costmodel.hardware import resolve_profile
from magicdec import predict
from magicdec.text import table


def step_errors() -> dict[tuple[str, str], list[float]]:
    """Relative errors by GPU and quantity, over the rows of the timings file."""
    errors = defaultdict(list)
    for row in published_timings():
        profile = resolve_profile(row["hardware"])
        seen = observations_of(row)
        target_s, verify_s, draft_s = (predicted_s(profile, observation) for observation in seen)
        named = zip(("target step", "verify step", "draft step"), seen, (target_s, verify_s, draft_s), strict=True)
        for name, observation, priced_s in named:
            errors[row["hardware"], name].append(priced_s / observation.measured_s - 1)
        round_s = int(row["gamma"]) * draft_s + verify_s + profile.calibration.round_overhead_s
        speedup = target_s * float(row["mean_acceptance_length"]) / round_s
        errors[row["hardware"], "speedup, given tokens per round"].append(speedup / float(row["measured_speedup"]) - 1)
    return errors


def best_gamma_errors() -> tuple[list[float], list[int]]:
    """Relative errors of the speedup at the best gamma, and how far that gamma is off, with acceptance from the shipped curves."""
    file = resources.files("costmodel") / "published" / "magicdec_optimal_gamma.csv"
    errors, off = [], []
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        e = predict(
            row["target"],
            row["hardware"],
            num_gpus=int(row["num_gpus"]),
            batch_size=int(row["batch_size"]),
            context_len=int(row["context_len"]),
            draft=row["draft_model"] or "self",
            kv_policy=row["kv_policy"],
            kv_budget=int(row["kv_budget"]),
        )
        errors.append(float(e.round.speedup) / float(row["measured_speedup"]) - 1)
        off.append(int(e.round.gamma) - int(row["measured_optimal_gamma"]))
    return errors, off


def main() -> None:
    grouped = step_errors()
    errors, off = best_gamma_errors()
    grouped["a100-sxm-80gb", "speedup at the best gamma"] = errors
    rows = [
        [gpu, name, str(len(found)), *(f"{100 * f(np.abs(found)):.1f} %" for f in (np.median, np.mean, np.max))]
        for (gpu, name), found in grouped.items()
    ]
    print(table(["GPU", "quantity", "rows", "median", "mean", "worst"], rows))
    print(f"\nbest gamma within 1 of the measured one: {np.mean(np.abs(off) <= 1):.0%} of {len(off)} rows")


if __name__ == "__main__":
    main()
