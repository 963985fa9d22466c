"""The error policy: it chooses an action for a message whose handler failed, by the error.

This module does no I/O. The consumer carries out the action that `ErrorPolicy.decide` returns.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from leveret.errors import ConfigurationError, LeveretError, TableSyntaxError, printable
from leveret.settings.functions import close_unawaited, is_async
from leveret.settings.names import CheckedNames

if TYPE_CHECKING:
    from leveret.wire.message import Message

__all__ = [
    "ATTEMPT_HEADER",
    "ERROR_HEADER",
    "Action",
    "DeadLetter",
    "Drop",
    "ErrorPolicy",
    "OnError",
    "Park",
    "Refused",
    "Requeue",
    "Retry",
    "Stop",
    "attempts_of",
    "checked_delay",
    "checked_refusal",
    "error_text",
    "policy_of",
]

logger = logging.getLogger("leveret.consuming")

#: How often a message has failed and was published again by `Retry` or `Park`.
ATTEMPT_HEADER: Final = "x-leveret-attempt"
#: The last error of a message; see `error_text`.
ERROR_HEADER: Final = "x-leveret-error"

#: Below this a message that always fails would keep a consumer busy.
_MIN_DELAY: Final = 0.1
#: A week. RabbitMQ takes longer delays, but a message that waits so long belongs in a database.
_MAX_DELAY: Final = 604_800.0
_MAX_ATTEMPTS: Final = 1000
#: The most retry queues of one `Retry`.
_MAX_DELAYS: Final = 16
#: A number of attempts from the network is not believed beyond this.
_MAX_COUNT: Final = 1_000_000
_ERROR_LENGTH: Final = 200
_THEN: Final = ("park", "dead_letter", "drop")
_DEFAULT_DELAYS: Final = (1.0, 5.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Requeue:
    """Back to the queue at once (basic.reject with requeue). A delivery that is already marked redelivered is refused.

    So a message that always fails is tried twice and does not spin; `refused` of the consumer says what becomes of it.
    """


@dataclass(frozen=True, slots=True, init=False)
class Retry(CheckedNames):
    """Handled again after a delay. This is what happens without a policy: after 1, 5, 30 and 60 s, then parked.

    The message is published to a retry queue that Leveret declares, `<queue>.retry.<milliseconds>`, and comes back from
    there. A message of a transient queue, or one whose retry queue cannot be used, is held by the consumer instead.

    Args:
        delays: Seconds before each retry, 0.1 to 604800, one for each failure that is retried: 1 to 1000, at most 16 of
            them different. So a message is handled up to `len(delays) + 1` times.
        delay: In place of `delays`, which is computed then: seconds before the first retry, 0.1 to 604800; 5 by
            default.
        max_attempts: How many failures are retried, 1 to 1000; 5 by default.
        factor: What each delay is multiplied by for the next one, 1 to 100; 2 by default.
        max_delay: The longest delay in seconds, `delay` to 604800; 3600 by default. There is one queue for each delay:
            when more than 16 would differ, some are rounded up to the next one, and the longest stays.
        then: What happens after that: "park", "dead_letter" or "drop".

    Attributes:
        delays: The delay of each retry in seconds.
        then: See above.

    Raises:
        ConfigurationError: An option is out of range, or `delays` is given with an option that it takes the place of.

    Example:
        >>> Retry(delays=(1, 10))
        Retry(delays=(1.0, 10.0), then='park')
        >>> Retry(delay=5, max_attempts=4, factor=3, max_delay=60).delays
        (5.0, 15.0, 45.0, 60.0)
    """

    delays: tuple[float, ...]
    then: Literal["park", "dead_letter", "drop"]

    def __init__(
        self,
        delays: Iterable[float] | None = None,
        *,
        delay: float | None = None,
        max_attempts: int | None = None,
        factor: float | None = None,
        max_delay: float | None = None,
        then: Literal["park", "dead_letter", "drop"] = "park",
    ) -> None:
        computed = {"delay": delay, "max_attempts": max_attempts, "factor": factor, "max_delay": max_delay}
        given = [name for name, value in computed.items() if value is not None]
        if delays is not None and given:
            raise ConfigurationError(
                f"{given[0]} computes the delays of a Retry, and delays lists them; give one of the two",
                option=given[0],
            )
        if then not in _THEN:
            raise _out_of_range("then", printable(repr(then), 64), " or ".join(map(repr, _THEN)))
        if given:
            made = _growing_delays(
                5.0 if delay is None else delay,
                5 if max_attempts is None else max_attempts,
                2.0 if factor is None else factor,
                3600.0 if max_delay is None else max_delay,
            )
        else:
            made = _listed_delays(_DEFAULT_DELAYS if delays is None else delays)
        object.__setattr__(self, "delays", made)
        object.__setattr__(self, "then", then)


def checked_delay(name: str, value: object) -> float:
    """Returns a delay in seconds, rounded up to whole milliseconds: never earlier than was asked for.

    Args:
        name: How an error calls it.
        value: The seconds.

    Raises:
        ConfigurationError: It is no number of 0.1 to 604800.
    """
    seconds = _number(name, value)
    if not _MIN_DELAY <= seconds <= _MAX_DELAY:
        raise _out_of_range(name, f"{seconds:g} s", f"{_MIN_DELAY:g} to {_MAX_DELAY:.15g} s")
    return math.ceil(round(seconds * 1000, 3)) / 1000


def _listed_delays(delays: object) -> tuple[float, ...]:
    if isinstance(delays, str | bytes) or not isinstance(delays, Iterable):
        raise _wrong_type("delays", delays, "a sequence of seconds")
    listed = tuple(checked_delay("delays", delay) for delay in delays)
    if not 1 <= len(listed) <= _MAX_ATTEMPTS:
        raise _out_of_range("delays", f"of {len(listed)} values", f"of 1 to {_MAX_ATTEMPTS}")
    different = len(set(listed))
    if different > _MAX_DELAYS:
        raise _out_of_range("delays", f"of {different} different values", f"of at most {_MAX_DELAYS}: each has a queue")
    return listed


def _growing_delays(delay: float, max_attempts: int, factor: float, max_delay: float) -> tuple[float, ...]:
    for name, given, low, high, unit in (
        ("delay", delay, _MIN_DELAY, _MAX_DELAY, " s"),
        ("factor", factor, 1.0, 100.0, ""),
        ("max_delay", max_delay, _MIN_DELAY, _MAX_DELAY, " s"),
    ):
        value = _number(name, given)
        if not low <= value <= high:
            raise _out_of_range(name, f"{value:g}{unit}", f"{low:g} to {high:.15g}{unit}")
    attempts: object = max_attempts
    if isinstance(attempts, bool) or not isinstance(attempts, int):
        raise _wrong_type("max_attempts", attempts, "a whole number")
    if not 1 <= attempts <= _MAX_ATTEMPTS:
        raise _out_of_range("max_attempts", str(attempts), f"1 to {_MAX_ATTEMPTS}")
    if max_delay < delay:
        raise _out_of_range("max_delay", f"{max_delay:g} s", f"delay, {delay:g} s, or more")
    wanted = []
    for _ in range(attempts):
        wanted.append(math.ceil(round(delay * 1000, 3)))
        delay = min(delay * factor, max_delay)
    distinct = sorted(set(wanted))
    count = len(distinct)
    if count > _MAX_DELAYS:
        kept = [distinct[(i + 1) * count // _MAX_DELAYS - 1] for i in range(_MAX_DELAYS)]
        wanted = [next(level for level in kept if level >= milliseconds) for milliseconds in wanted]
    return tuple(milliseconds / 1000 for milliseconds in wanted)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Rejected (basic.reject): it goes to the queue's dead-letter exchange; without one the broker drops it."""


@dataclass(frozen=True, slots=True)
class Park:
    """Put aside in the queue `<queue>.parked`, which Leveret declares, for a person to look at.

    A message of a transient queue goes to `leveret.parked`, which all of them share. It is safe whether or not the
    queue has a dead-letter exchange.
    """


@dataclass(frozen=True, slots=True)
class Drop:
    """Acknowledged, logged and counted: the message is gone."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Released to the queue, and the consumer ends with the error."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What a handler's False says: `refused` of the consumer decides. A policy returns it; it is no action to give."""


Action: TypeAlias = Requeue | Retry | DeadLetter | Park | Drop | Stop
_ACTIONS: Final = (Requeue, Retry, DeadLetter, Park, Drop, Stop)
_REFUSALS: Final = (DeadLetter, Park, Drop)
Decider: TypeAlias = Callable[[BaseException, "Message"], Action | bool]


class ErrorPolicy:
    """Chooses the action for a message by the error that its handler raised.

    Args:
        rules: Actions by exception class; of those that fit, the most specific counts (the first in the class's
            `__mro__`). Or a function of (error, message) that returns an action, True to try again (`default` when that
            is `Retry` or `Requeue`, otherwise `Retry()`) or False, which means what it means as a handler's result. It
            is called in the event loop and must not wait. When it raises or returns anything else, that is logged and
            `default` happens: no message is lost.
        default: What happens when no rule fits; `Retry()` unless given.

    Raises:
        ConfigurationError: A rule is none; the text names it.

    Attributes:
        rules: The rules by class, as they were given; empty for a function.
        default: The action without a rule.

    Example:
        >>> policy = ErrorPolicy({ConnectionError: Retry(delay=1), ValueError: Park()}, default=DeadLetter())
        >>> policy.rules[ValueError]
        Park()
    """

    __slots__ = ("_decider", "default", "rules")

    def __init__(
        self, rules: Mapping[type[BaseException], Action] | Decider | None = None, default: Action | None = None
    ) -> None:
        self.default: Action = Retry() if default is None else _checked("default", default)
        self.rules: Mapping[type[BaseException], Action] = {}
        self._decider: Decider | None = None
        given: object = rules
        if isinstance(given, Mapping):
            self.rules = {_checked_class(key): _checked(f"rules[{_name(key)}]", value) for key, value in given.items()}
        elif given is not None:
            self._decider = _checked_function(given)

    def __repr__(self) -> str:
        if self._decider is not None:
            return f"ErrorPolicy({_name(self._decider)}, default={self.default})"
        rules = ", ".join(f"{_name(cls)}: {action}" for cls, action in self.rules.items())
        return f"ErrorPolicy({{{rules}}}, default={self.default})"

    @property
    def delays(self) -> tuple[float, ...]:
        """The delays in seconds of all rules and the default, each once: each is one retry queue."""
        retries = [action for action in (self.default, *self.rules.values()) if isinstance(action, Retry)]
        return tuple(sorted({delay for action in retries for delay in action.delays}))

    def decide(self, error: BaseException, message: Message) -> Action | Refused:
        """Chooses what to do with a message.

        Args:
            error: What the handler raised.
            message: The message.

        Returns:
            The action. It is `Refused()` where a function returned False, and where a rule says `Requeue()` and the
            delivery is marked redelivered.
        """
        action = self._by_class(error) if self._decider is None else self._by_function(self._decider, error, message)
        return Refused() if type(action) is Requeue and message.redelivered else action

    def has_rule_for(self, error: BaseException) -> bool:
        """Whether this policy says something about an error, other than by its default."""
        return self._decider is not None or any(cls in self.rules for cls in type(error).__mro__)

    def _by_class(self, error: BaseException) -> Action:
        for cls in type(error).__mro__:
            action = self.rules.get(cls)
            if action is not None:
                return action
        return self.default

    def _by_function(self, decide: Decider, error: BaseException, message: Message) -> Action | Refused:
        try:
            answer: object = decide(error, message)
        except Exception as raised:
            # Without its text, which may quote the message.
            logger.warning(
                "the error policy %s raised %s at %s for %s; its default %s is carried out",
                _name(decide),
                type(raised).__name__,
                _place(raised),
                type(error).__name__,
                self.default,
            )
            return self.default
        if answer is True:
            return self.default if isinstance(self.default, Retry | Requeue) else Retry()
        if answer is False:
            return Refused()
        if isinstance(answer, _ACTIONS):
            return answer
        close_unawaited(answer)
        logger.warning(
            "the error policy %s returned %s for %s, which is no action, True or False; its default %s is carried out",
            _name(decide),
            type(answer).__name__,
            type(error).__name__,
            self.default,
        )
        return self.default


#: What a caller may give as an error policy.
OnError = ErrorPolicy | Action | Mapping[type[BaseException], Action] | Decider | None


def policy_of(on_error: OnError) -> ErrorPolicy:
    """Makes a policy of what a caller may give as one.

    Args:
        on_error: A policy, an action for every error, rules by class, a function of (error, message), or None.

    Returns:
        The policy; the default one for None.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(on_error, ErrorPolicy):
        return on_error
    if isinstance(on_error, _ACTIONS):
        return ErrorPolicy(default=on_error)
    return ErrorPolicy(on_error)


def checked_refusal(refused: object) -> DeadLetter | Park | Drop | None:
    """Returns what a caller gave as `refused`.

    Raises:
        ConfigurationError: It is neither None nor one of the three actions.
    """
    if refused is None or isinstance(refused, _REFUSALS):
        return refused
    hint = f"; write {refused.__name__}()" if isinstance(refused, type) and refused in _REFUSALS else ""
    raise ConfigurationError(
        f"refused is {_name(refused)}; it must be DeadLetter(), Park(), Drop() or None{hint}", option="refused"
    )


def attempts_of(message: Message) -> int:
    """Returns how often a message has failed: before it came, by its header, and since then, while it was held here.

    Any publisher to the queue can write the header, so it is checked: a value that is no count is 0, and a huge one is
    1000000.

    Args:
        message: The message.

    Returns:
        The count, 0 for one that has not failed.
    """
    here = message.failed_here
    try:
        value: object = message.headers.get(ATTEMPT_HEADER)
    except TableSyntaxError:
        return here
    if type(value) is not int or value < 0:
        return here
    return min(value + here, _MAX_COUNT)


def error_text(error: BaseException) -> str:
    """Returns the text of an error for a header: its class, and its message when that is known to quote no body.

    Args:
        error: The error.

    Returns:
        At most 200 characters that can be printed.
    """
    name = type(error).__name__
    # Texts of Leveret's own classes have no bodies; those of others, and of classes derived elsewhere, may.
    if isinstance(error, LeveretError) and type(error).__module__.partition(".")[0] == "leveret":
        name = f"{name}: {error}"
    text = printable(name, _ERROR_LENGTH)
    return text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 3] + "..."


# ---------------------------------------------------------------------- checks


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "a number")
    return value


def _wrong_type(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is of type {type(value).__name__}; it must be {wanted}", option=name)


def _out_of_range(name: str, value: str, bounds: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {value}; it must be {bounds}", option=name)


def _checked(name: str, value: object) -> Action:
    if isinstance(value, _ACTIONS):
        return value
    hint = f"; write {value.__name__}()" if isinstance(value, type) and value in _ACTIONS else ""
    actions = ", ".join(f"{action.__name__}()" for action in _ACTIONS)
    raise ConfigurationError(f"{name} is {_name(value)}, which is no action ({actions}){hint}", option=name)


def _checked_class(key: object) -> type[BaseException]:
    if isinstance(key, type) and issubclass(key, BaseException):
        return key
    raise ConfigurationError(f"rules has {_name(key)}, which is no exception class", option="rules")


def _checked_function(value: object) -> Decider:
    if isinstance(value, type) and value in _ACTIONS:
        _checked("on_error", value)
    if not callable(value) or isinstance(value, type):
        raise ConfigurationError(
            f"on_error is {_name(value)}; it must be an action, a mapping of exception classes to actions, a function "
            "of (error, message), or an ErrorPolicy",
            option="on_error",
        )
    if is_async(value):
        raise ConfigurationError(
            f"on_error is the `async def` function {_name(value)}; it is called between two messages and must not wait",
            option="on_error",
        )
    return value


def _name(value: object) -> str:
    """Returns the name of a function or class for a text, or the type of a value: its repr may be anything."""
    name: object = getattr(value, "__qualname__", None)
    return printable(name, 100) if isinstance(name, str) else f"a {type(value).__name__}"


def _place(error: BaseException) -> str:
    """Where an error was raised, without the file's path."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "an unknown place" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
