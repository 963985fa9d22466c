"""A certificate authority for tests."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class TLSFiles(NamedTuple):
    """PEM files of one side: its authority's certificate, its own certificate chain, its private key."""

    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Returns a context for a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class TLSAuthority:
    """Issues certificates into a folder.

    Args:
        folder: Where the PEM files are written; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.folder = folder
        self.authority_file = folder / "authority.pem"
        self.authority.cert_pem.write_to_path(self.authority_file)
        self._count = 0

    def issue(self, *identities: str, **options: Any) -> TLSFiles:
        """Issues a certificate for these host names and addresses; `options` are ``trustme.CA.issue_cert``'s."""
        issued = self.authority.issue_cert(*identities, **options)
        self._count += 1
        certificate, key = (self.folder / f"{self._count}-{kind}.pem" for kind in ("certificate", "key"))
        issued.private_key_pem.write_to_path(key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        return TLSFiles(self.authority_file, certificate, key)
