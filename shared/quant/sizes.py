"""What may be asked for, apart from everything that computes with it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

KINDS: Final[Mapping[str, int]] = MappingProxyType({"int4": 4, "int8": 8})
GROUP_SIZES: Final = (32, 64, 128)
DEFAULT_GROUP: Final = 32
