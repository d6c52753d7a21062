"""Plans by path or as they are."""

from __future__ import annotations

from pathlib import Path

from magicdec.costmodel.plans.plan import Plan, load_plan

from .checks import text


def resolve_plan(plan: str | Path | Plan) -> Plan:
    """A plan, or the one that a file holds.

    Raises:
        InputError: The file cannot be read or is no plan.
    """
    return plan if isinstance(plan, Plan) else load_plan(text("plan", plan))
