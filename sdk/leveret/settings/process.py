"""The options of a process: its plugins, its metrics sinks and its garbage collector."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

from leveret.records import dataclass, field
from leveret.settings.environment import Section, read_environment
from leveret.settings.names import unknown
from leveret.settings.rules import Options, Rule, Table, option, rules_of, seconds, wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSettings(Section):
    """Metrics sinks, reports and alerts of a client.

    Attributes:
        sinks: The names of metrics sinks, which plugins bring; empty for none. Counting costs the same either way.
        sink_timeout: Seconds that a sink gets to start, and again to close, 0.001 to 86400.
        report_every: Seconds between two reports in the log, 0.1 to 86400; None for no reports.
        report_queues: The queues whose ready messages and consumers each report has; each costs a passive queue.declare
            per report.
        slow_handler: Handlers that take more seconds than this are logged with queue, handler and message id, 0.000001
            to 86400; None for no such lines. It needs no reports.
        alert_success: Alert when the share of successes in a period is below this, for publishing or consuming, 0 to 1;
            None for no alert. Alerts are checked with each report, so an alert option alone begins reports each 10 s.
        alert_confirm_p99: Alert when the 99th percentile of publish to confirm is above so many seconds, 0.000001 to
            86400; None for no alert.
        alert_handler_p99: Alert when the 99th percentile of handlers is above so many seconds, 0.000001 to 86400; None
            for no alert.
        alert_silence: Alert when no delivery came for so many seconds, 0.001 to 86400, although a consumer is
            subscribed; None for no alert.
        alert_blocked: Alert when the broker has blocked publishings for so many seconds, 0.001 to 86400; None for no
            alert.
        alert_parked: Alert when so many deliveries, 1 or more, were parked in one period; None for no alert.
        alert_queue_depth: Alert when a queue of `report_queues` has more ready messages than this, 1 or more; None for
            no alert.

    Example:
        >>> MonitoringSettings(sinks=["prometheus"]).sinks
        ('prometheus',)
    """

    _family = "MONITORING_"

    sinks: Sequence[str] = option((), items=Rule(kind=str, minimum=1, maximum=255))
    sink_timeout: float = seconds(5.0)
    report_every: float | None = option(None, float, unit="s", minimum=0.1, maximum=86_400)
    report_queues: Sequence[str] = option((), items=Rule(kind=str, minimum=1, maximum=255))
    slow_handler: float | None = option(None, float, unit="s", minimum=0.000001, maximum=86_400)
    alert_success: float | None = option(None, float, minimum=0, maximum=1)
    alert_confirm_p99: float | None = option(None, float, unit="s", minimum=0.000001, maximum=86_400)
    alert_handler_p99: float | None = option(None, float, unit="s", minimum=0.000001, maximum=86_400)
    alert_silence: float | None = option(None, float, unit="s", minimum=0.001, maximum=86_400)
    alert_blocked: float | None = option(None, float, unit="s", minimum=0.001, maximum=86_400)
    alert_parked: int | None = option(None, int, minimum=1, maximum=2**40)
    alert_queue_depth: int | None = option(None, int, minimum=1, maximum=2**40)

    @property
    def reports(self) -> bool:
        """True when an option is set that needs reports."""
        wanted = (getattr(self, name) for name in rules_of(type(self)) if name.startswith(("report_", "alert_")))
        return any(value not in (None, ()) for value in wanted)

    def _check_together(self) -> None:
        if len(set(self.sinks)) < len(self.sinks):
            raise wrong("sinks", "sinks names one sink twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class GcSettings(Options):
    """The way a `GcPolicy` treats Python's garbage collector.

    Attributes:
        freeze: True collects once at the start and then leaves out of all collections what is alive (gc.freeze), which
            is mostly modules and what the program has set up.
        threshold: New objects, without those that are gone, at which Python collects by itself, 1000 to 10000000. A
            higher one means fewer, longer pauses and more garbage. Python's own is 700, and 2000 from 3.13 on.
        interval: Seconds between two looks at whether there is something to collect, 0.001 to 60.
        idle_turn: The event loop counts as idle when one turn of it takes at most this many seconds, 0.00001 to 1.
        max_delay: Seconds since the last collection after which a loop that is never idle collects all the same, 0.001
            to 86400.
        log_interval: Seconds between two lines in the log, 0.001 to 86400.

    Example:
        >>> GcSettings().replace(threshold=50_000).threshold
        50000
    """

    freeze: bool = option(True)
    threshold: int = option(10_000, minimum=1000, maximum=10_000_000)
    interval: float = seconds(0.1, maximum=60)
    idle_turn: float = seconds(0.001, minimum=0.00001, maximum=1)
    max_delay: float = seconds(5.0)
    log_interval: float = seconds(60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings(Options):
    """Which installed plugins to use. Plugins are meant by the name of their entry point or of their distribution.

    Attributes:
        allow: Only these; None allows all, and an empty list none. What the core brings is always there.
        block: Not these. A blocked plugin is not imported.
        strict: True makes a plugin that fails to load an error; otherwise it is logged and left out.
        choose: Which plugin is meant where two bring the same: by name, content type or content encoding.

    Example:
        >>> PluginSettings.from_env({"LEVERET_PLUGINS_ALLOW": "msgpack,lz4"}).allow
        ('msgpack', 'lz4')
    """

    allow: Sequence[str] | None = option(None, tuple, items=Rule(kind=str, minimum=1, maximum=255))
    block: Sequence[str] = option((), items=Rule(kind=str, minimum=1, maximum=255))
    strict: bool = option(False)
    choose: Mapping[str, str] = field(default_factory=dict, hash=False, metadata={"rule": Rule(kind=Mapping)})

    def _check_together(self) -> None:
        texts: tuple[object, ...] = (*self.choose, *self.choose.values())
        if not all(isinstance(text, str) for text in texts):
            raise wrong("choose", "choose must be a table of text to text")
        # The caller's own may change.
        object.__setattr__(self, "choose", Table(self.choose))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "LEVERET_") -> Self:
        """Makes settings from `LEVERET_PLUGINS_ALLOW` (`none` for nothing), `..._BLOCK` and `..._STRICT`.

        Args:
            environ: The variables; None means those of the process.
            prefix: What the names start with.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: One of these variables is unknown or wrong.
        """
        environ = os.environ if environ is None else environ
        family = f"{prefix}PLUGINS_"
        rules = {name: rule for name, rule in rules_of(cls).items() if name != "choose"}  # a table has no text
        if family[:-1] in environ:
            raise unknown("allow", rules, given=family[:-1], shown=lambda name: family + name.upper())
        values = read_environment(environ, family, rules)
        allow = environ.get(f"{family}ALLOW")
        if allow is not None and not allow.strip():
            del values["allow"]  # an empty variable is as good as none
        elif allow is not None and allow.strip() == "none":
            values["allow"] = ()
        return cls(**values)
