"""Safe YAML loading that rejects duplicate keys; plain YAML would silently keep the last one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import yaml

from .errors import bad

if TYPE_CHECKING:
    from yaml import SafeLoader
else:  # libyaml, where PyYAML was built with it: ten times as fast
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(SafeLoader):
    pass


def _construct_unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Hashable, object]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    duplicates = [key for i, key in enumerate(keys) if key in keys[:i]]
    if duplicates:
        raise yaml.constructor.ConstructorError(None, None, f"the key {duplicates[0]!r} is given twice", node.start_mark)
    return dict(SafeLoader.construct_mapping(loader, node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique_mapping)


def load_mapping(text: str, where: str, what: str) -> dict[str, object]:
    """Parse a YAML text that must be a mapping with text keys.

    Args:
        text: Content of the file.
        where: The file, for error messages.
        what: What the file should be, for error messages.

    Raises:
        InputError: The text is not YAML, repeats a key, or is not a mapping with text keys.
    """
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, TypeError) as error:
        raise bad(where, "", "YAML", " ".join(str(error).split())) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise bad(where, "", what, type(raw).__name__)
    return raw
