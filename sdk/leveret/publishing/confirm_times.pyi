from typing import final

from leveret.monitoring.histogram import Histogram

__test__: dict[str, str]

@final
class ConfirmTimes:
    @property
    def histogram(self) -> Histogram: ...
