"""Plan and execute speculative decoding with sparse KV caches.

>>> import magicdec
>>> e = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000, gamma=3)
>>> round(float(e.round.speedup), 1)
1.5
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "ask", "evaluate_grid", "plan", "predict"]

if TYPE_CHECKING:
    from magicdec.costmodel.base.errors import InputError
    from magicdec.costmodel.speculation.evaluate import evaluate_grid

    from .api import ask, predict
    from .planning import plan


def __getattr__(name: str) -> Any:
    """The public functions, imported when first used, so that `import magicdec` and `magicdec --help` stay instant."""
    import importlib

    homes = {
        "InputError": "magicdec.costmodel.base.errors",
        "evaluate_grid": "magicdec.costmodel.speculation.evaluate",
        "plan": "magicdec.planning",
    }
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(homes.get(name, "magicdec.api")), name)
