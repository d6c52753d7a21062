"""Which drafts an engine can run, and how a draft drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.speculation.drafts import Draft, Tree

from .checks import probabilities, whole_numbers

if TYPE_CHECKING:
    from magicdec.costmodel.engines.profile import EngineProfile
    from magicdec.costmodel.speculation.deployment import Deployment


def exported_engine(deployment: Deployment) -> str | None:
    """The engine of a deployment if plans can be exported to it; None if there is none, or none such."""

    if deployment.engine is None:
        return None
    from magicdec.costmodel.export.engines import ENGINES

    return deployment.engine.name if deployment.engine.name in ENGINES else None


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


def shaped(draft: Draft, tree: Sequence[int] | None, match_share: float | None, gamma: object = None) -> Draft:
    """A draft with the tree that it drafts, or the share of rounds in which it does.

    Args:
        draft: The draft.
        tree: Tokens at each level, and tokens verified; None for a chain.
        match_share: Share of rounds with a match; None for all. [0-1]
        gamma: Levels of the tree, if they are given.

    Raises:
        InputError: The draft is of another kind, or the numbers do not fit together.
    """
    if tree is not None:
        width, tokens = (*whole_numbers("tree", tree), 0, 0)[:2]
        if draft.kind != "eagle3":
            raise bad("tree", "", "a draft of kind eagle3; others draft chains: leave it out", draft.kind)
        if len(tree) != 2 or not 1 <= width < tokens:
            expected = "two numbers: tokens at each level, and more tokens to verify than that, such as 4,8"
            raise bad("tree", "", expected, ",".join(map(str, tree)))
        if isinstance(gamma, int) and tokens > 1 + gamma * width * width:
            most = 1 + gamma * width * width
            raise bad("tree", "", f"at most {most} tokens to verify, as many as {gamma} levels of {width} hold", tokens)
        draft = replace(draft, tree=Tree(width, tokens))
    if match_share is not None:
        if draft.kind != "ngram":
            raise bad("match_share", "", "a draft of kind ngram; others draft in every round: leave it out", draft.kind)
        probabilities("match_share", [match_share])
        draft = replace(draft, matches=float(match_share))
    return draft
