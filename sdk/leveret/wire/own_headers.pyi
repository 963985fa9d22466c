from typing import Final

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

SENT_AT_HEADER: Final[str]
ORIGINAL_SIZE_HEADER: Final[str]
