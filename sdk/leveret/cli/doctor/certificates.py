"""Looks at a server's certificate, also at one that is not trusted, and says in plain words what is wrong with it."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from leveret.cli.doctor.finding import some
from leveret.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Handshake", "expiry_of", "handshake", "refused_certificate"]

#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which ssl.VerifyFlags does not name.
_NO_CHECK_TIME: Final = 0x200000

#: OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_..., x509_vfy.h).
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_SELF_SIGNED: Final = 18
_SELF_SIGNED_IN_CHAIN: Final = 19
_NO_ISSUER: Final = (2, 20, 21)
_OTHER_NAME: Final = (62, 64)

_TRUST: Final = "Give the CA's certificate: amqps://...?cafile=/path/ca.pem"


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a TLS handshake has shown.

    Attributes:
        version: The protocol's version, such as `TLSv1.3`.
        certificate: The server's, as `ssl.SSLSocket.getpeercert` has it; empty when it was not verified.
        encoded: The server's, as DER.
    """

    version: str
    certificate: Mapping[str, Any]
    encoded: bytes


async def handshake(address: str, port: int, context: ssl.SSLContext, name: str) -> Handshake:
    """Makes a handshake and hangs up. The caller sets the deadline.

    Raises:
        OSError: There was none; `ssl.SSLCertVerificationError`: the certificate was refused.
    """
    _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
    try:
        session = writer.get_extra_info("ssl_object")
        return Handshake(
            version=session.version() or "TLS",
            certificate=session.getpeercert() or {},
            encoded=session.getpeercert(binary_form=True) or b"",
        )
    finally:
        writer.transport.abort()


def expiry_of(certificate: Mapping[str, Any]) -> datetime:
    """Returns the end of a certificate's validity."""
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


async def refused_certificate(error: OSError, address: str, port: int, name: str, limit: float) -> tuple[str, str]:
    """Says why a handshake failed.

    Args:
        error: What the handshake raised.
        address: The server's address.
        port: Its port.
        name: The name that its certificate should have.
        limit: Seconds for looking at its certificate.

    Returns:
        What is wrong, and what to do about it.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "reason", None) or error.strerror or "the server hung up"
        advice = "Is that a TLS port (5671), and does it take TLS 1.2 or newer? Does it ask for a certfile and keyfile?"
        return f"no TLS handshake: {printable(str(reason)).replace('_', ' ').lower()}", advice
    try:
        async with asyncio.timeout(limit):
            certificate = await _untrusted(address, port, name)
    except (OSError, TimeoutError):
        certificate = {}
    return _plain(error, certificate, name)


async def _untrusted(address: str, port: int, name: str) -> Mapping[str, Any]:
    """Reads the certificate of a server that is not trusted. Nothing is sent to it.

    The ssl module takes a certificate apart only when it has verified it. So the certificate is fetched first, and then
    taken as the one that is trusted, whatever its names and dates.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    encoded = (await handshake(address, port, context, name)).encoded
    context = ssl.create_default_context(cadata=encoded)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags |= _NO_CHECK_TIME
    return (await handshake(address, port, context, name)).certificate


def _plain(error: ssl.SSLCertVerificationError, certificate: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Returns what is wrong with a certificate, and what to do about it."""
    code = error.verify_code
    if code == _EXPIRED:
        since = f" on {expiry_of(certificate):%Y-%m-%d}" if certificate else ""
        return f"the certificate expired{since}", "Renew the broker's certificate. Is the clock of this host right?"
    if code == _NOT_YET_VALID:
        return "the certificate is not valid yet", "Is the clock of this host right?"
    if code in _OTHER_NAME:
        names = some([printable(text) for _, text in certificate.get("subjectAltName", ())])
        return (
            f"the certificate is for {names or 'another name'}, not for {printable(name)}",
            "Use a name of the certificate in the URL, or say it: ?server_hostname=NAME.",
        )
    if code == _SELF_SIGNED:
        return "the certificate is self-signed: no CA vouches for it", f"{_TRUST} (here: the certificate itself)."
    if code == _SELF_SIGNED_IN_CHAIN:
        return "the certificate's CA is not one that this host trusts", f"{_TRUST}."
    if code in _NO_ISSUER:
        issuer = _name_in(certificate.get("issuer", ()))
        return (
            f"the certificate was issued by {issuer}, which this host does not know",
            f"{_TRUST}, or have the broker send the certificates between its own and the CA's.",
        )
    return f"the certificate was refused: {printable(error.verify_message)}", "Ask who runs the broker."


def _name_in(subject: Any) -> str:
    """Returns the common name of a subject or issuer, or else its organization."""
    names = {key: text for part in subject for key, text in part}
    return printable(str(names.get("commonName") or names.get("organizationName") or "a CA"))
