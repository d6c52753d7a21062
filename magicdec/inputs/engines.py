"""Which drafts an engine can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.speculation.drafts import Draft

if TYPE_CHECKING:
    from magicdec.costmodel.engines.profile import EngineProfile
    from magicdec.costmodel.speculation.deployment import Deployment


def exported_engine(deployment: Deployment) -> str | None:
    """The engine of a deployment if plans can be exported to it; None if there is none, or none such."""
    from magicdec.costmodel.export.engines import ENGINES

    return deployment.engine.name if deployment.engine is not None and deployment.engine.name in ENGINES else None


def check_engine(engine: EngineProfile | None, drafts: Sequence[Draft]) -> None:
    """Refuse drafts that an engine cannot run, and name those that can.

    Raises:
        InputError: It runs none of them.
    """
    kinds = [draft.kind for draft in drafts if draft.drafts]
    if engine is None or not kinds or any(kind in engine.drafts for kind in kinds):
        return
    from magicdec.costmodel.engines.catalog import builtin_engine, engine_files

    others = [name for name in engine_files() if set(kinds) & set(builtin_engine(name).drafts)]
    hint = f"{', '.join(others)} would run it" if others else "no engine known here runs it"
    raise bad(
        "engine", "", f"one that runs a draft of kind {kinds[0]} ({hint})", f"{engine.name}, which runs {', '.join(engine.drafts)}"
    )
