"""A model on a machine, resolved from their names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.passes.roofline import VERIFY_KERNELS
from magicdec.costmodel.plans.plan import PlannedModel
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES, KV_DTYPES
from magicdec.costmodel.speculation.acceptance import TASKS
from magicdec.costmodel.speculation.deployment import Deployment

from .checks import one_of, text, whole_number
from .machines import check_layer_split
from .names import Model, executed, find_hardware, find_model

if TYPE_CHECKING:
    from magicdec.costmodel.engines.profile import EngineProfile


@dataclass(frozen=True)
class Scenario:
    """A model on a machine.

    Attributes:
        model: The target and its acceptance curves.
        deployment: The target, in the types it runs in, on its GPUs.
    """

    model: Model
    deployment: Deployment

    def __str__(self) -> str:
        where = self.deployment
        gpus = f"{where.num_gpus} x " if where.num_gpus > 1 else ""
        return f"{where.target.name} on {gpus}{where.hardware.name}"


def with_types(scenario: Scenario, planned: PlannedModel) -> Scenario:
    """The scenario with the types that a plan gives its target."""
    target = scenario.deployment.target.compressed(weight_dtype=planned.weight_dtype, kv_dtype=planned.kv_dtype)
    return replace(scenario, deployment=replace(scenario.deployment, target=target))


def resolve_scenario(
    model: str,
    hardware: str,
    *,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    engine: str | None = None,
    task: str | None = None,
    quant: str | None = None,
) -> Scenario:
    """Resolve the names of a model and a machine.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A GPU's name, `cpu`, `local`, a profile file, or several of them separated by commas.
        num_gpus: GPUs in all.
        tensor_parallel: GPUs that share one replica of the target; None for all.
        verify_kernel: How verification attention reads the KV cache, one of `VERIFY_KERNELS`; None for how the engine does.
        weight_dtype, kv_dtype: Narrower types of the target's matrices and KV cache, of `COMPRESSED_DTYPES` and `KV_DTYPES`.
        engine: The serving engine, or its profile; None for the one that the machine's profile was calibrated with.
        task: What is generated, one of `TASKS`; None for a mean over tasks.
        quant: Quantisation of the weights, as its files are named: Q4_K_M, AWQ, NVFP4; None for what the name says.

    Raises:
        InputError: A name is unknown, or the values do not fit together.
    """
    named = model if quant is None else f"{text('model', model)}-{text('quant', quant)}"
    found, profile = find_model(named), find_hardware(hardware)
    num_gpus = whole_number("num_gpus", num_gpus)
    check_layer_split(profile, num_gpus)
    shared_by = num_gpus if tensor_parallel is None else whole_number("tensor_parallel", tensor_parallel)
    served_by = None if engine is None else _engine(engine)
    stored = found.config if served_by is None else served_by.stored(found.config)
    target = executed(stored, profile, shared_by).compressed(
        weight_dtype=one_of("weight_dtype", weight_dtype, COMPRESSED_DTYPES),
        kv_dtype=one_of("kv_dtype", kv_dtype, KV_DTYPES),
    )
    kernel = one_of("verify_kernel", verify_kernel, VERIFY_KERNELS)
    if kernel is None:
        kernel = VERIFY_KERNELS[0] if served_by is None else served_by.terms(profile).verify_kernel
    used, about = profile if served_by is None else served_by.on(profile), one_of("task", task, TASKS)
    try:
        return Scenario(found, Deployment(target, used, num_gpus, shared_by, kernel, served_by, about))
    except InputError as error:
        problem = error.problems[0]
        if tensor_parallel is not None or problem.where != "tensor_parallel":
            raise
        expected = f"{problem.expected}, as one replica takes all GPUs unless `tensor_parallel` is given"
        raise bad("num_gpus", "", expected, num_gpus) from None


def _engine(name: str) -> EngineProfile:
    from magicdec.costmodel.engines.catalog import find_engine  # slow to import, and seldom needed

    return find_engine(text("engine", name))
