"""Machines, engines, models and drafts side by side: speed, limits and cost of the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.plans.workload import Workload

from ..api.explore import BATCH_SIZES
from ..api.plan import make_plan
from ..inputs.checks import finite, probabilities, some_names, text, whole_number, whole_numbers
from ..inputs.engines import exported_engine
from ..inputs.plan_search import PlanSearch, check_types
from ..inputs.scenario import resolve_scenario
from ..inputs.served import Serving
from .comparison import Compared, Comparison


def compare(
    model: str | Sequence[str],
    hardware: str | Sequence[str],
    *,
    context_len: int,
    output_len: int,
    batch_size: int | Sequence[int] | None = None,
    draft: str | Sequence[str] | None = None,
    engine: str | Sequence[str] | None = None,
    each_draft: bool = False,
    max_tpot_s: float | None = None,
    max_ttft_s: float | None = None,
    cached_share: float = 0.0,
    gpu_price: float | Mapping[str, float] | None = None,
    acceptance_rate: float | None = None,
    num_gpus: int | Sequence[int] | None = None,
    tensor_parallel: int | Sequence[int] | None = None,
    requests_per_s: float | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    figure: str | Path | None = None,
) -> Comparison:
    """Set machines, engines, models or drafts side by side, each at its best batch size within the limits.

    Args:
        model, hardware, engine: One or several of each; every combination is a row.
        context_len, output_len: Lengths of prompt and output. [tokens]
        batch_size: Batch sizes to choose from; None for 1 to 256. [sequences]
        draft: Drafts to choose from, as in `plan`.
        each_draft: Make a row of every draft, instead of choosing the best.
        max_tpot_s, max_ttft_s: Limits on the time per output token and to the first token. [s]
        cached_share: Share of each prompt whose KV cache is there already. [0-1]
        gpu_price: Price of a GPU, of all machines or by the names in `hardware`. [dollars per hour]
        acceptance_rate: Given instead of looked up. [0-1]
        num_gpus: GPUs in all, None for 1; several are rows of their own.
        tensor_parallel: GPUs that share one replica, None for all; several are rows of their own, where they divide the GPUs.
        requests_per_s: A load; each row says how many GPUs it takes. [1/s]
        weight_dtype, kv_dtype: As in `plan`.
        figure: File for a figure of throughput against TPOT (PNG, SVG or PDF).

    Raises:
        InputError: A name is unknown, a price is for no machine, or no row can be served.
    """
    machines, models = some_names("hardware", hardware), some_names("model", model)
    joined = next((name for name in machines if "," in name), None)
    if joined is not None and num_gpus not in (None, 1):
        several = "one machine each time that it is given: a comma joins different GPUs into one machine"
        raise bad("hardware", "", f"{several}, whose number needs no `num_gpus`", repr(joined))
    engines = (None,) if engine is None else some_names("engine", engine)
    drafts = None if draft is None else some_names("draft", draft)
    prices = _prices(gpu_price, machines)
    probabilities("cached_share", [cached_share])
    workload = Workload(1, whole_number("context_len", context_len), whole_number("output_len", output_len))
    rows = []
    separate: Sequence[tuple[str, ...] | None] = [(one,) for one in drafts] if each_draft and drafts else [drafts]
    finite("requests_per_s", requests_per_s, "requests a second")
    layouts = _layouts(whole_numbers("num_gpus", num_gpus) or (1,), whole_numbers("tensor_parallel", tensor_parallel))
    for one, place, (gpus, shared_by), served_by, kinds in product(models, machines, layouts, engines, separate):
        made = partial(Compared, one, place, gpus, shared_by or gpus, served_by)
        try:
            scenario = resolve_scenario(
                one,
                place,
                num_gpus=gpus,
                tensor_parallel=shared_by,
                weight_dtype=weight_dtype,
                kv_dtype=kv_dtype,
                engine=served_by,
            )
            search = PlanSearch(
                drafts=kinds,
                batch_sizes=whole_numbers("batch_size", batch_size) or BATCH_SIZES,
                objective="cost",
                max_tpot_s=max_tpot_s,
                acceptance_rate=acceptance_rate,
                engine=exported_engine(scenario.deployment),
            )
            check_types(search.engine, weight_dtype, kv_dtype)
            found = make_plan(scenario, workload, search, served=Serving(cached_share, 0.0, max_ttft_s, prices.get(place)))
        except InputError as error:
            if error.problems[0].where in ("model", "hardware", "engine", "draft"):
                raise
            rows.append(made(None, str(error.problems[0])))
        else:
            rows.append(made(found, ""))
    if not any(row.result for row in rows):
        raise bad("hardware", "", "a machine that serves these requests within the limits", rows[0].problem)
    comparison = Comparison(tuple(rows), workload, max_tpot_s, requests_per_s or None)
    if figure is not None:
        from magicdec.reports.comparison import draw

        draw(text("figure", figure), comparison.curves(), max_tpot_s)
    return comparison


def _layouts(counts: Sequence[int], shared: Sequence[int]) -> list[tuple[int, int | None]]:
    """Numbers of GPUs, each with the ways to share a replica that divide it.

    Raises:
        InputError: None does.
    """
    found = [(gpus, one) for gpus in counts for one in shared or (None,) if one is None or gpus % one == 0]
    if not found:
        raise bad("tensor_parallel", "", f"divisors of {' or '.join(map(str, counts))} GPUs", ", ".join(map(str, shared)))
    return found


def _prices(given: float | Mapping[str, float] | None, machines: Sequence[str]) -> dict[str, float]:
    """A price for each machine that has one."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        value = finite("gpu_price", given, "dollars per GPU and hour")
        return dict.fromkeys(machines, value or 0.0)
    for name, value in given.items():
        finite("gpu_price", value, "dollars per GPU and hour")
        if name not in machines:
            raise bad("gpu_price", "", f"prices of the machines compared ({', '.join(machines)})", name)
    if missing := [name for name in machines if name not in given]:
        raise bad("gpu_price", "", f"a price for every machine, {missing[0]} too", ", ".join(given))
    return dict(given)
