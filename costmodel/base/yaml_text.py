"""Reading YAML that people write: safely, and refusing a key given twice, of which plain YAML keeps the last in silence."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import bad

# libyaml where PyYAML was built with it: ten times as fast, and the same language.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc]
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
    return dict(_Safe.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_mapping(text: str, where: str, what: str) -> dict[str, Any]:
    """The mapping that a YAML text holds.

    Args:
        text: The file's content.
        where: The file, for error messages.
        what: What the file should be, for error messages.

    Raises:
        InputError: It is no YAML, gives a key twice, or is no mapping with text keys.
    """
    try:
        raw = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, TypeError) as error:
        raise bad(where, "", "YAML", " ".join(str(error).split())) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise bad(where, "", what, type(raw).__name__)
    return raw
