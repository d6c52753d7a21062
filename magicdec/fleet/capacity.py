"""How many requests a machine serves at once within limits, by context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.limits import MAX_SEQUENCES
from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.planning.sweep import Sweep

from ..api.explore import explore_scenario, sweep_scenario
from ..inputs.checks import finite, some_names, whole_number, whole_numbers
from ..inputs.engines import exported_engine
from ..inputs.plan_search import PlanSearch, check_types
from ..inputs.scenario import Scenario, resolve_scenario
from .capacity_grid import CapacityGrid, chosen_tpot_s

STEPS = 32  # batch sizes tried between one that passes and one that fails


def capacity(
    model: str,
    hardware: str,
    *,
    output_len: int,
    batch_size: int | Sequence[int] | None = None,
    context_len: int | Sequence[int] | None = None,
    draft: str | Sequence[str] | None = None,
    engine: str | None = None,
    max_tpot_s: float | None = None,
    max_ttft_s: float | None = None,
    acceptance_rate: float | None = None,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
) -> CapacityGrid:
    """Find the time per output token by concurrency and context, what passes, and the highest concurrency that does.

    Args:
        model, hardware, draft, engine, acceptance_rate: As in `plan`.
        output_len: New tokens per sequence. [tokens]
        batch_size, context_len: Several values are the axis; one joins the usual ones. [sequences, tokens]
        max_tpot_s, max_ttft_s: Limits on the time per output token and to the first token; memory is a limit in any case. [s]
        num_gpus, tensor_parallel, weight_dtype, kv_dtype: As in `plan`.

    Raises:
        InputError: A name is unknown, a value is out of its range, or no cell passes.
    """
    scenario = resolve_scenario(
        model,
        hardware,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        engine=engine,
    )
    search = PlanSearch(
        drafts=None if draft is None else some_names("draft", draft),
        batch_sizes=whole_numbers("batch_size", batch_size),
        max_tpot_s=max_tpot_s,
        acceptance_rate=acceptance_rate,
        engine=exported_engine(scenario.deployment),
        output_len=whole_number("output_len", output_len),
    )
    check_types(search.engine, weight_dtype, kv_dtype)
    finite("max_ttft_s", max_ttft_s, "a positive time")
    contexts = whole_numbers("context_len", context_len)
    found = explore_scenario(scenario, replace(search, max_tpot_s=None), context_lens=contexts).sweep
    within = found if max_tpot_s is None else _sweep(scenario, search, found.batch_sizes.tolist(), found.context_lens.tolist())
    grid = CapacityGrid(scenario, found, within, search.output_len, max_tpot_s, max_ttft_s)
    if not grid.passes.any():
        _refuse(grid)
    return replace(grid, highest=tuple(_highest(grid, search, column) for column in range(len(found.context_lens))))


def _refuse(grid: CapacityGrid) -> None:
    """Say which limit nothing holds, and by how much."""
    ttft_s, tpot_s = grid.ttft_s.min(), np.nanmin(np.where(grid.fits, chosen_tpot_s(grid.sweep), np.inf))
    if not grid.fits.any():
        raise bad("batch_size", "", "a batch that fits in memory (use more GPUs or a shorter context)", "none")
    if grid.max_ttft_s is not None and ttft_s > grid.max_ttft_s:
        ratio = f"{ttft_s / grid.max_ttft_s:.2f} times the limit"
        raise bad("max_ttft_s", "", f"at least {format_seconds(ttft_s)} here ({ratio})", format_seconds(grid.max_ttft_s))
    limit = grid.max_tpot_s or 0.0
    ratio = f"{tpot_s / limit:.2f} times the limit"
    raise bad("max_tpot_s", "", f"at least {format_seconds(tpot_s)} here ({ratio})", format_seconds(limit))


def _highest(grid: CapacityGrid, search: PlanSearch, column: int) -> int | None:
    """The highest concurrency that passes at one context; None if none does. [sequences]"""
    batches, passes = grid.sweep.batch_sizes, grid.passes[:, column]
    if not passes.any():
        return None
    low = int(batches[np.flatnonzero(passes)[-1]])
    above = batches[batches > low]
    high = int(above[0]) if len(above) else None
    while high is None:  # the axis ends before the limits do
        tried = min(4 * low, MAX_SEQUENCES)
        if tried == low:
            return low
        low, high = (tried, None) if _passes(grid, search, column, [tried])[0] else (low, tried)
    while high - low > 1:
        steps = sorted({int(batch) for batch in np.linspace(low, high, STEPS)} - {low, high})
        fine = _passes(grid, search, column, steps)
        low = max([low, *(batch for batch, good in zip(steps, fine, strict=True) if good)])
        high = min([high, *(batch for batch, good in zip(steps, fine, strict=True) if not good and batch > low)])
    return low


def _passes(grid: CapacityGrid, search: PlanSearch, column: int, batches: Sequence[int]) -> list[bool]:
    context = int(grid.sweep.context_lens[column])
    found = _sweep(grid.scenario, search, batches, [context])
    return [bool(good) for good in replace(grid, sweep=found, within=found).passes[:, 0]]


def _sweep(scenario: Scenario, search: PlanSearch, batches: Sequence[int], contexts: Sequence[int]) -> Sweep:
    return sweep_scenario(scenario, search, batches, contexts, search.gammas)
