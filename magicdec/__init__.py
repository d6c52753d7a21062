"""Predict, plan and run speculative decoding with sparse KV caches.

>>> import magicdec
>>> found = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000, gamma=3)
>>> round(float(found.speedup), 1)
1.5
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "acceptance",
    "calibrate",
    "capacity",
    "compare",
    "demo",
    "environment",
    "evaluate_grid",
    "explore",
    "export",
    "import_results",
    "load_measurements",
    "load_plan",
    "models",
    "plan",
    "predict",
    "predict_scenarios",
    "profiles",
    "regimes",
    "report",
    "run",
    "validate",
]

if TYPE_CHECKING:
    from magicdec.api.acceptance import acceptance
    from magicdec.api.calibrate import calibrate
    from magicdec.api.demo import demo
    from magicdec.api.explore import explore
    from magicdec.api.export import export
    from magicdec.api.importing import import_results
    from magicdec.api.listings import environment, models, profiles
    from magicdec.api.plan import plan
    from magicdec.api.predict import predict
    from magicdec.api.regimes import regimes
    from magicdec.api.report import report
    from magicdec.api.run import run
    from magicdec.api.scenarios import predict_scenarios
    from magicdec.api.validate import validate
    from magicdec.costmodel.base.errors import InputError
    from magicdec.costmodel.plans.measurement import load_measurements
    from magicdec.costmodel.plans.plan import load_plan
    from magicdec.costmodel.speculation.evaluate import evaluate_grid
    from magicdec.fleet.capacity import capacity
    from magicdec.fleet.compare import compare

# Where each public name is defined; it is imported on first use, so that `import magicdec` is instant.
_HOMES = {
    "InputError": "costmodel.base.errors",
    "acceptance": "api.acceptance",
    "calibrate": "api.calibrate",
    "capacity": "fleet.capacity",
    "compare": "fleet.compare",
    "demo": "api.demo",
    "environment": "api.listings",
    "evaluate_grid": "costmodel.speculation.evaluate",
    "explore": "api.explore",
    "export": "api.export",
    "import_results": "api.importing",
    "load_measurements": "costmodel.plans.measurement",
    "load_plan": "costmodel.plans.plan",
    "models": "api.listings",
    "plan": "api.plan",
    "predict": "api.predict",
    "predict_scenarios": "api.scenarios",
    "profiles": "api.listings",
    "regimes": "api.regimes",
    "report": "api.report",
    "run": "api.run",
    "validate": "api.validate",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        from .inputs.extras import missing_extra

        if (advice := missing_extra(error)) is None:
            raise
        raise ImportError(f"magicdec.{name}: {advice}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
