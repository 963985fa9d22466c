"""TLS: a broker that proves who it is, and every way in which one may not."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop
from tests.support.peers import FakeServer, Peer
from tests.support.secrets import PASSWORD, assert_not_shown
from tests.support.tls import TLSAuthority

import leveret
from leveret import TLSSettings, Topology
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailed,
    IncompatibleProtocol,
    LeveretError,
    TLSVerificationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.rabbitmq import RabbitMQNode
    from tests.support.tls import TLSFiles

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def never_spoken_to(peer: Peer) -> None:
    """The script of a server that must not get one byte of AMQP."""
    received = await peer.read(1)
    raise AssertionError(f"the client sent {received!r} to a server that it must not trust")


# ---------------------------------------------------------------------- a good broker


@every_loop
@pytest.mark.integration
async def test_messages_go_through_tls_when_the_broker_proves_who_it_is(
    rabbitmq: RabbitMQNode, tls_authority: TLSAuthority, unique_name: Callable[[str], str]
) -> None:
    queue = unique_name("tls")
    async with leveret.connect(f"{rabbitmq.tls_url}?cafile={tls_authority.authority_file}") as client:
        transport = client.connection.transport
        assert transport.extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        assert transport.extra_info("peercert")["subjectAltName"]
        await client.declare(Topology().queue(queue))
        async with client.producer(serializer="bytes") as producer:
            assert await producer.publish_batch([bytes(size) for size in (0, 1, 100_000, 1_000_000)], queue)
        channel = await client.channel()
        for size in (0, 1, 100_000, 1_000_000):
            message = await channel.basic_get(queue, no_ack=True)
            assert message is not None
            assert message.body_size == size
        await client.delete_queue(queue)
    assert transport.closed  # after both sides took leave


@pytest.mark.integration
async def test_the_certificate_may_have_another_name_when_the_settings_say_which(
    rabbitmq: RabbitMQNode, tls_authority: TLSAuthority
) -> None:
    tls = TLSSettings(cafile=str(tls_authority.authority_file), server_hostname="localhost", minimum_version="TLSv1.3")
    url = rabbitmq.tls_url.replace("localhost", "127.0.0.1")
    async with leveret.connect(url, tls=tls) as client:
        assert client.connection.transport.extra_info("ssl_object").version() == "TLSv1.3"


async def test_the_client_shows_its_certificate_when_the_server_asks_for_one(tls_authority: TLSAuthority) -> None:
    mine = tls_authority.issue("client@example.org")
    context = server_context(tls_authority.issue("127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls_authority.authority_file)
    mechanisms = []

    async def server(peer: Peer) -> None:
        await peer.read(8)
        from pamqp.commands import Connection

        peer.send(Connection.Start(mechanisms="PLAIN EXTERNAL"))
        start_ok = await peer.expect(Connection.StartOk)
        mechanisms.append((start_ok.mechanism, start_ok.response))
        peer.send(Connection.Close(403, "ACCESS_REFUSED - enough", 0, 0))
        await peer.linger()

    async with FakeServer(server, tls=context) as fake:
        tls = TLSSettings(
            cafile=str(tls_authority.authority_file), certfile=str(mine.certificate), keyfile=str(mine.key)
        )
        with pytest.raises(AuthenticationError):
            await leveret.connect(fake.url, tls=tls, mechanism="EXTERNAL")
        assert mechanisms == [("EXTERNAL", "")]
        # And without a certificate the server hangs up.
        with pytest.raises(LeveretError):
            await leveret.connect(fake.url, tls=tls.replace(certfile=None, keyfile=None), mechanism="EXTERNAL")
    assert mechanisms == [("EXTERNAL", "")]


# ---------------------------------------------------------------------- a broker that does not


def server_context(files: TLSFiles) -> ssl.SSLContext:
    return files.server_context()


def expired(authority: TLSAuthority) -> TLSFiles:
    return authority.issue("127.0.0.1", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


@every_loop
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("wrong authority", "unable to get local issuer|self.signed"),
        ("wrong host", "127.0.0.1|mismatch"),
        ("name for an address", "127.0.0.1|mismatch"),
        ("expired", "expired"),
        ("self-signed", "self.signed"),
        ("no authority given", "self.signed|local issuer"),
    ],
)
async def test_not_one_byte_is_sent_when_the_certificate_is_not_good(
    tls_authority: TLSAuthority, tmp_path: Path, case: str, reason: str
) -> None:
    other = TLSAuthority(tmp_path)
    files = {
        "wrong authority": lambda: other.issue("127.0.0.1"),
        "wrong host": lambda: tls_authority.issue("another.example.org", "127.0.0.2"),
        "name for an address": lambda: tls_authority.issue("localhost"),
        "expired": lambda: expired(tls_authority),
        "self-signed": lambda: self_signed(other),
        "no authority given": lambda: other.issue("127.0.0.1"),
    }[case]()
    tls = TLSSettings() if case == "no authority given" else TLSSettings(cafile=str(tls_authority.authority_file))
    async with FakeServer(never_spoken_to, tls=server_context(files)) as server:
        async with asyncio.timeout(5):
            with pytest.raises(TLSVerificationError) as refused:
                await leveret.connect(server.url, tls=tls)
        text = str(refused.value)
        assert f"127.0.0.1:{server.port}" in text
        assert any(word in text.lower() for word in reason.lower().replace(".", "-").split("|")), text
        assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)
        assert_not_shown(refused.value)


def self_signed(authority: TLSAuthority) -> TLSFiles:
    """The authority's own certificate, as that of a server."""
    files = authority.issue("127.0.0.1")
    files.certificate.write_bytes(authority.authority.cert_pem.bytes())
    files.key.write_bytes(authority.authority.private_key_pem.bytes())
    return files


async def test_verification_is_left_out_when_the_code_says_so(tls_authority: TLSAuthority) -> None:
    opened = asyncio.Event()

    async def server(peer: Peer) -> None:
        await peer.handshake()
        opened.set()
        await peer.linger()

    async with FakeServer(server, tls=server_context(expired(tls_authority))) as fake:
        async with leveret.connect(fake.url, tls=TLSSettings(insecure_skip_verification=True)):
            assert opened.is_set()
        # A URL cannot say it.
        with pytest.raises(ConfigurationError, match="insecure_skip_verification"):
            leveret.connect(f"{fake.url}?insecure_skip_verification=true")


@every_loop
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1])
async def test_the_connection_fails_when_the_server_has_only_older_versions(
    tls_authority: TLSAuthority, version: ssl.TLSVersion
) -> None:
    context = server_context(tls_authority.issue("127.0.0.1"))
    if version is ssl.TLSVersion.TLSv1_1:
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = version
    else:
        context.maximum_version = version
    minimum: Any = "TLSv1.3" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.2"
    tls = TLSSettings(cafile=str(tls_authority.authority_file), minimum_version=minimum)
    async with FakeServer(never_spoken_to, tls=context) as server:
        with pytest.raises(ConnectFailed) as failed:
            async with asyncio.timeout(5):
                await leveret.connect(server.url, tls=tls)
        # This server hangs up without a word; others send an alert.
        words = (
            f"TLS with 127.0.0.1:{server.port} failed: the server hung up in the handshake; is that a TLS port, and "
        )
        assert str(failed.value) == f"{words}does it take {minimum} or newer (minimum_version)?"


@every_loop
async def test_the_connection_fails_when_the_server_says_that_it_has_only_older_versions(
    tls_authority: TLSAuthority,
) -> None:
    context = server_context(tls_authority.issue("127.0.0.1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def refuse(peer: Peer) -> None:
        # asyncio's servers hang up before their alert is sent; this one speaks TLS through memory, and sends it.
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(received, sent, server_side=True)
        refused = False
        while not refused:
            received.write(await peer.read(1))
            try:
                server.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                refused = True
        peer.send_bytes(sent.read())
        peer.hang_up()

    tls = TLSSettings(cafile=str(tls_authority.authority_file), minimum_version="TLSv1.3")
    async with FakeServer(refuse) as server:
        with pytest.raises(ConnectFailed, match=r"TLSV1_ALERT_PROTOCOL_VERSION; .* does it take TLSv1\.3 or newer"):
            async with asyncio.timeout(5):
                await leveret.connect(server.url.replace("amqp:", "amqps:"), tls=tls)


@every_loop
@pytest.mark.integration
async def test_the_connection_fails_when_a_plain_port_is_asked_for_tls(
    rabbitmq: RabbitMQNode, tls_authority: TLSAuthority
) -> None:
    url = f"amqps://guest:{PASSWORD}@localhost:{rabbitmq.port}?cafile={tls_authority.authority_file}"
    with pytest.raises(ConnectFailed) as failed:
        async with asyncio.timeout(15):
            await leveret.connect(url)
    assert not isinstance(failed.value, TLSVerificationError)
    assert f"localhost:{rabbitmq.port}" in str(failed.value)
    assert_not_shown(failed.value)


@every_loop
@pytest.mark.integration
async def test_the_connection_fails_when_a_tls_port_is_spoken_to_plainly(rabbitmq: RabbitMQNode) -> None:
    url = f"amqp://guest:{PASSWORD}@127.0.0.1:{rabbitmq.tls_port}"
    with pytest.raises((IncompatibleProtocol, leveret.errors.ConnectionLost)) as failed:
        async with asyncio.timeout(15):
            await leveret.connect(url)
    assert_not_shown(failed.value)


async def test_the_connection_fails_when_the_server_is_silent_in_the_tls_handshake(
    tls_authority: TLSAuthority,
) -> None:
    async def silent(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with FakeServer(silent) as server:  # accepts, and says nothing
        tls = TLSSettings(cafile=str(tls_authority.authority_file))
        with pytest.raises(ConnectFailed, match=r"connect_timeout of 0\.2 s"):
            async with asyncio.timeout(2):
                await leveret.connect(server.url.replace("amqp:", "amqps:"), tls=tls, connect_timeout=0.2)


async def test_the_connection_fails_when_the_server_hangs_up_in_the_tls_handshake() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.read(1)
        peer.hang_up()

    async with FakeServer(hang_up) as server:
        with pytest.raises(ConnectFailed, match=f"127.0.0.1:{server.port}"):
            async with asyncio.timeout(5):
                await leveret.connect(server.url.replace("amqp:", "amqps:"))


# ---------------------------------------------------------------------- files that are not good


@pytest.mark.parametrize("what", ["cafile", "certfile", "keyfile"])
async def test_the_file_is_named_when_it_is_not_what_it_should_be(
    tls_authority: TLSAuthority, tmp_path: Path, what: str
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    mine = tls_authority.issue("client")
    options: dict[str, Any] = {
        "cafile": {"cafile": str(garbage)},
        "certfile": {"certfile": str(garbage), "keyfile": str(mine.key)},
        "keyfile": {"certfile": str(mine.certificate), "keyfile": str(tls_authority.issue("other").key)},
    }[what]
    with pytest.raises(ConfigurationError) as refused:
        await leveret.connect(f"amqps://guest:{PASSWORD}@127.0.0.1:1", tls=TLSSettings(**options))
    assert refused.value.option == "tls"
    assert "127.0.0.1:1" in str(refused.value)
    assert_not_shown(refused.value)


def test_the_file_is_named_when_there_is_none() -> None:
    with pytest.raises(ConfigurationError, match=r"cafile.*/nowhere\.pem"):
        leveret.connect("amqps://localhost?cafile=/nowhere.pem")
