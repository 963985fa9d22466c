"""What a client logs in with: the user and password of the settings, or what a credential provider returns."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from leveret.errors import ConfigurationError, ConnectFailed, OperationTimeout, printable
from leveret.runtime.threads import in_daemon_thread
from leveret.settings import ConnectionSettings, Secret
from leveret.settings.functions import is_async
from leveret.settings.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.errors import LeveretError
    from leveret.settings import Endpoint

__all__ = ["Credentials", "name_who", "secret_of"]


class Credentials:
    """The user and secret of a client's next connection; all its links share them.

    Args:
        settings: The user, the password and the provider, and `connect_timeout`, the provider's deadline in seconds.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._username = settings.username
        self._secret = settings.password
        self._provider = settings.credentials
        self._timeout = settings.connect_timeout

    def __repr__(self) -> str:
        return "<Credentials>"

    def update(self, secret: str | Secret) -> None:
        """Uses another password or token from the next connect on. A credential provider is asked all the same.

        Raises:
            ConfigurationError: It is no text that AMQP can carry; the error does not show it.
        """
        self._secret = secret_of(secret)

    async def ask(self) -> tuple[str, Secret]:
        """Returns the user and the secret to log in with now.

        Raises:
            ConnectFailed: The provider raised; the error names the exception's class only, and has it as its cause.
            OperationTimeout: The provider took longer than `connect_timeout`.
            ConfigurationError: The provider returned something other than a user name and a password.
        """
        if self._provider is None:
            return self._username, self._secret
        deadline = asyncio.timeout(self._timeout)
        try:
            async with deadline:
                answer = await _answer_of(self._provider)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                raise OperationTimeout(
                    f"the credential provider did not answer within connect_timeout of {self._timeout:g} s"
                ) from None
            # Its text may show what the provider was given.
            raise ConnectFailed(f"the credential provider failed: {type(error).__name__}") from error
        login, failure = _checked(answer)
        del answer  # a traceback shows what variables hold
        if login is None:
            raise ConfigurationError(failure, option="credentials")
        return login


def secret_of(value: object) -> Secret:
    """Returns a password or token as a `Secret`.

    Raises:
        ConfigurationError: It is no text that AMQP can carry; the error does not show it.
    """
    secret: Secret = rules_of(ConnectionSettings)["password"].check("secret", value)
    return secret


async def _answer_of(provider: Callable[[], Any]) -> Any:
    """Calls a provider: an async one in the event loop, a plain one in a thread, because it may read files."""
    if is_async(provider):
        return await provider()
    answer = await in_daemon_thread(provider, "leveret credential provider")
    # A lambda or a partial that returns an async function's coroutine.
    return await answer if inspect.isawaitable(answer) else answer


def _checked(answer: object) -> tuple[tuple[str, Secret] | None, str]:
    """Returns the user and secret of a provider's answer, or what is wrong with it."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        kind = type(answer).__name__
        return None, f"the credential provider returned a {kind}; it must return (username, password)"
    rules = rules_of(ConnectionSettings)
    try:
        return (rules["username"].check("username", answer[0]), rules["password"].check("password", answer[1])), ""
    except ConfigurationError as error:
        return None, f"the credential provider: {error}"


def name_who(error: LeveretError, settings: ConnectionSettings, username: str, endpoint: Endpoint | None) -> None:
    """Says in an error of the handshake who connected where to what; the password is never in it.

    Args:
        error: The error; its text is changed.
        settings: Those of the connection.
        username: Who logged in.
        endpoint: Where to; None for the unix socket of the settings.
    """
    who = f"user {printable(username, 64)!r}" if settings.mechanism == "PLAIN" else settings.mechanism
    where = endpoint or settings.unix_socket
    virtual_host = printable(settings.virtual_host, 64)
    error.args = (f"connecting to {where} as {who}, virtual host {virtual_host!r}, failed: {error}",)
