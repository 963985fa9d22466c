"""`leveret doctor` on live brokers and on what is none: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import RabbitMQ
from tests.support.doctor import NAMES, by_state, examined, of_doctor, queues_of
from tests.support.peers import FakeServer, Peer, silent_address
from tests.support.secrets import PASSWORD
from tests.support.tls import TLSAuthority

from leveret import ConnectionSettings, Quorum, Topology
from leveret.broker import EmbeddedBroker
from leveret.cli.doctor.checks import CHECKS, Check, examine
from leveret.cli.doctor.finding import State, ok
from leveret.cli.doctor.visit import Visit
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

    import leveret
    from leveret.cli.doctor.finding import Finding

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(60)]

WITHOUT_QUEUE = ["queue", "retry queues", "parking"]


def assert_all_left_out_after(name: str, findings: dict[str, Finding]) -> None:
    for later in NAMES[NAMES.index(name) + 1 :]:
        assert findings[later].state is State.SKIPPED
        assert findings[later].found in (f"not tried, because {name!r} failed", "not used: the URL begins with amqp://")


# ---------------------------------------------------------------------- a good broker


async def test_a_good_broker_passes_every_check_and_nothing_is_left_on_it(broker: Broker) -> None:
    findings = await examined(broker.url)
    states = by_state(findings)
    assert "failed" not in states
    assert states["skipped"] == ["TLS", *WITHOUT_QUEUE]
    assert "'guest' by PLAIN at " in findings["login"].found
    assert findings["virtual host"].found == "'/'"
    assert "frame_max 131072 bytes (as asked)" in findings["limits"].found
    trip = findings["round trip"].figures
    assert 0 < trip["publish_to_confirm_p50_ms"] <= trip["publish_to_confirm_max_ms"]
    assert 0 < trip["publish_to_consume_p50_ms"] <= trip["publish_to_consume_max_ms"]
    # The broker is on this host: it has this clock. It tells whole seconds.
    assert findings["clock"].state is State.OK
    assert abs(findings["clock"].figures["ahead_s"]) < 30
    assert of_doctor(await queues_of(broker)) == set()


async def test_the_broker_is_named_with_its_version_and_what_that_means(broker: Broker) -> None:
    finding = (await examined(broker.url))["broker"]
    if isinstance(broker, RabbitMQ):
        assert finding.found.startswith(f"RabbitMQ {'.'.join(map(str, broker.version))}")
        assert " on Erlang " in finding.found
        assert "community support" in finding.found
    else:
        assert finding.found.startswith("Leveret embedded broker ")
        assert "loses it" in finding.advice


async def test_a_queue_is_looked_at_and_its_messages_are_left_alone(
    broker: Broker, client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("billing")
    await client.declare(Topology().queue(queue, Quorum()))
    async with client.producer() as producer:
        await producer.publish("untouched", queue)
    findings = await examined(broker.url, queue)
    assert "failed" not in by_state(findings)
    assert findings["queue"].found.startswith(f"{queue!r} has 1 message and 0 consumers")
    channel = await client.channel()
    message = await channel.basic_get(queue, no_ack=True)
    assert message is not None
    assert not message.redelivered
    assert message.headers.get("x-delivery-count", 0) == 0
    await channel.close()
    assert of_doctor(await queues_of(broker)) == set()
    assert {each for each in await queues_of(broker) if each.startswith(queue)} == {queue}


async def test_a_queue_whose_name_is_too_long_for_retry_queues_has_none(
    broker: Broker, client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("long").ljust(250, "g")
    await client.declare(Topology().queue(queue))
    try:
        findings = await examined(broker.url, queue)
    finally:
        await client.delete_queue(queue)
    assert "failed" not in by_state(findings)
    if isinstance(broker, RabbitMQ):
        assert findings["retry queues"].state is State.SKIPPED
        assert findings["parking"].found == "may declare and use leveret.parked"


async def test_a_queue_that_does_not_exist_is_a_failed_check(broker: Broker) -> None:
    findings = await examined(broker.url, "no-such-queue")
    assert by_state(findings)["failed"] == ["queue"]
    assert "does not exist" in findings["queue"].found
    assert "no-such-queue" not in await queues_of(broker)


async def test_the_checks_go_over_tls_and_the_certificate_s_end_is_told(
    rabbitmq: RabbitMQNode, tls_authority: TLSAuthority
) -> None:
    url = f"amqps://guest:guest@localhost:{rabbitmq.tls_port}?cafile={tls_authority.authority_file}"
    findings = await examined(url)
    assert findings["TLS"].state is State.OK
    assert findings["TLS"].figures["expires_days"] > 30
    assert "TLSv1." in findings["TLS"].found
    assert "failed" not in by_state(findings)


async def test_a_unix_socket_has_no_name_and_no_port(tmp_path: Path) -> None:
    async with EmbeddedBroker(path=str(tmp_path / "socket")) as broker:
        findings = await examined(broker.url)
    assert by_state(findings)["skipped"] == ["DNS", "TLS", *WITHOUT_QUEUE]
    assert str(tmp_path / "socket") in findings["TCP"].found
    assert "failed" not in by_state(findings)


# ---------------------------------------------------------------------- what goes wrong


async def test_a_blocked_broker_fails_the_check_of_alarms_and_gets_no_queue_to_fill(blockable: Broker) -> None:
    await blockable.block()
    findings = await examined(blockable.url, timeout=15)
    assert by_state(findings)["failed"] == ["alarms"]
    assert "blocks publishers" in findings["alarms"].found
    for name in ("round trip", "retry", "clock"):
        assert findings[name].state is State.SKIPPED
    await blockable.unblock()
    assert of_doctor(await queues_of(blockable)) == set()


@pytest.mark.parametrize("change", [{"password": PASSWORD}, {"username": "nobody", "password": PASSWORD}])
async def test_a_refused_login_is_told_without_the_password(broker: Broker, change: dict[str, Any]) -> None:
    findings = await examined(broker.url, **change)
    assert by_state(findings)["failed"] == ["login"]
    assert "refused" in findings["login"].found
    assert "password" in findings["login"].advice
    assert_all_left_out_after("login", findings)
    assert PASSWORD not in str(findings)


async def test_a_wrong_virtual_host_is_not_taken_for_a_wrong_login(broker: Broker) -> None:
    findings = await examined(broker.url, virtual_host="no-such-vhost")
    assert findings["login"].state is State.OK
    assert by_state(findings)["failed"] == ["virtual host"]
    assert "'no-such-vhost'" in findings["virtual host"].found
    assert_all_left_out_after("virtual host", findings)


async def test_a_port_that_refuses_is_named_with_its_reason() -> None:
    findings = await examined("amqp://guest:guest@127.0.0.1:1")
    assert by_state(findings)["failed"] == ["TCP"]
    assert findings["TCP"].found == "127.0.0.1:1: connection refused"
    assert "is this its port?" in findings["TCP"].advice
    assert_all_left_out_after("TCP", findings)


async def test_an_unknown_name_is_a_failure_of_dns() -> None:
    findings = await examined("amqp://guest:guest@no-such-host.invalid")
    assert by_state(findings)["failed"] == ["DNS"]
    assert_all_left_out_after("DNS", findings)


async def test_an_address_that_is_silent_costs_its_share_of_the_time_only() -> None:
    with silent_address() as port:
        findings = await examined(f"amqp://guest:guest@127.0.0.1:{port}", timeout=1)
    assert by_state(findings)["failed"] == ["TCP"]
    assert "no answer within 0.2 s" in findings["TCP"].found
    assert "firewall" in findings["TCP"].advice


async def test_one_silent_host_of_two_is_a_warning_and_the_other_one_is_examined(embedded: EmbeddedBroker) -> None:
    with silent_address() as port:
        url = embedded.url.replace("@", f"@127.0.0.1:{port},")
        findings = await examined(url, timeout=15)
    assert findings["TCP"].state is State.WARNING
    assert f"127.0.0.1:{port}: no answer" in findings["TCP"].found
    assert findings["round trip"].state is State.OK
    assert "failed" not in by_state(findings)


async def answers_like_http(peer: Peer) -> None:
    await peer.read(8)
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    peer.hang_up()


async def says_nothing(peer: Peer) -> None:
    await asyncio.Event().wait()


async def test_a_web_server_is_recognized() -> None:
    async with FakeServer(answers_like_http) as server:
        findings = await examined(server.url)
    assert by_state(findings)["failed"] == ["login"]
    assert "does not speak AMQP" in findings["login"].found
    assert "web server" in findings["login"].advice
    assert PASSWORD not in str(findings)


async def test_a_tls_port_without_tls_in_the_url_is_a_failed_login(rabbitmq: RabbitMQNode) -> None:
    findings = await examined(f"amqp://guest:{PASSWORD}@127.0.0.1:{rabbitmq.tls_port}")
    assert by_state(findings)["failed"] == ["login"]
    assert PASSWORD not in str(findings)


async def test_a_server_that_is_silent_in_the_handshake_does_not_take_all_of_the_time() -> None:
    async with FakeServer(says_nothing) as server:
        findings = await examined(server.url, timeout=4)
    assert by_state(findings)["failed"] == ["login"]
    assert "silent in the AMQP handshake" in findings["login"].found


async def test_what_the_broker_lowers_is_told_with_what_was_asked_for() -> None:
    async def lowers(peer: Peer) -> None:
        await peer.handshake(frame_max=8192, channel_max=5, heartbeat=3)
        await peer.linger()

    async with FakeServer(lowers) as server:
        findings = await examined(server.url, timeout=10)
    text = findings["limits"].found
    assert "frame_max 8192 bytes (lowered by the broker from 131072)" in text
    assert "channel_max 5 (lowered by the broker from 2047)" in text
    assert "heartbeat 3 s (lowered by the broker from 30)" in text
    assert findings["limits"].state is State.WARNING, "a pool of 16 channels does not fit"
    assert "max_pooled_channels" in findings["limits"].advice
    assert findings["broker"].state is State.WARNING, "it is not RabbitMQ"
    assert "heartbeat=30" in findings["settings"].advice


async def test_no_heartbeat_is_advised_against(embedded: EmbeddedBroker) -> None:
    findings = await examined(embedded.url, heartbeat=0)
    assert findings["settings"].state is State.WARNING
    assert "heartbeat=30" in findings["settings"].advice


# ---------------------------------------------------------------------- certificates

DAY = dt.timedelta(days=1)


async def certificate(server: TLSAuthority, trusted: TLSAuthority, name: str, **options: dt.datetime) -> Finding:
    """The finding for a server that shows a certificate for a name, on 127.0.0.1."""
    files = server.issue(name, **options)
    async with FakeServer(says_nothing, tls=files.server_context()) as peer:
        return (await examined(f"{peer.url}?cafile={trusted.authority_file}", timeout=10))["TLS"]


@pytest.fixture
def other_authority(tmp_path: Path) -> TLSAuthority:
    return TLSAuthority(tmp_path)


async def test_a_certificate_for_another_name_is_told_with_its_names(tls_authority: TLSAuthority) -> None:
    finding = await certificate(tls_authority, tls_authority, "broker.example")
    assert finding.state is State.FAILED
    assert finding.found.endswith("the certificate is for broker.example, not for 127.0.0.1")
    assert "server_hostname" in finding.advice


async def test_an_expired_certificate_is_told_with_its_date(tls_authority: TLSAuthority) -> None:
    ended = dt.datetime.now(dt.UTC) - 3 * DAY
    finding = await certificate(tls_authority, tls_authority, "127.0.0.1", not_after=ended)
    assert finding.state is State.FAILED
    assert finding.found.endswith(f"the certificate expired on {ended:%Y-%m-%d}")


async def test_a_certificate_that_expires_soon_is_a_warning(tls_authority: TLSAuthority) -> None:
    ends = dt.datetime.now(dt.UTC) + 10 * DAY
    finding = await certificate(tls_authority, tls_authority, "127.0.0.1", not_after=ends)
    assert finding.state is State.WARNING
    assert f"expires in 10 days ({ends:%Y-%m-%d})" in finding.found


async def test_a_certificate_of_an_unknown_ca_is_told_in_plain_words(
    tls_authority: TLSAuthority, other_authority: TLSAuthority
) -> None:
    finding = await certificate(other_authority, tls_authority, "127.0.0.1")
    assert finding.state is State.FAILED
    assert "does not know" in finding.found or "not one that this host trusts" in finding.found
    assert "cafile=" in finding.advice


async def test_a_plain_port_is_told_from_a_certificate_that_is_wrong(embedded: EmbeddedBroker) -> None:
    findings = await examined(embedded.url.replace("amqp:", "amqps:"))
    assert by_state(findings)["failed"] == ["TLS"]
    assert "no TLS handshake" in findings["TLS"].found
    assert "TLS port" in findings["TLS"].advice


# ---------------------------------------------------------------------- the end


async def test_what_was_made_is_deleted_when_the_examination_is_broken_off(broker: Broker) -> None:
    begun = asyncio.Event()
    kept: list[str] = []

    async def hang(visit: Visit) -> Finding:
        # As the check of retries does, which is broken off while its message waits.
        name = f"leveret.doctor.{id(begun)}"
        visit.making(name)
        channel = await visit.channel()
        await channel.queue_declare(name, arguments=Quorum().x_arguments())
        kept.extend(of_doctor(await queues_of(broker)))
        begun.set()
        await asyncio.Event().wait()
        return ok("never")

    async def run() -> None:
        async with Visit(ConnectionSettings.from_url(broker.url), None, 40.0) as visit:
            await examine(visit, lambda name: None, [*CHECKS, Check("hangs", hang, ("login",))])

    task = asyncio.create_task(run())
    await asyncio.wait([asyncio.create_task(begun.wait()), task], return_when=asyncio.FIRST_COMPLETED)
    assert len(kept) == 2, "the exclusive queue, and the one that this check made"
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    async with asyncio.timeout(10):
        while of_doctor(await queues_of(broker)):  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.1)


async def test_all_checks_have_one_deadline_and_those_behind_it_are_left_out(embedded: EmbeddedBroker) -> None:
    async def hang(visit: Visit) -> Finding:
        await asyncio.Event().wait()
        return ok("never")

    checks = [Check("first", hang), Check("second", hang)]
    async with Visit(ConnectionSettings.from_url(embedded.url), None, 0.5) as visit:
        findings = dict(await examine(visit, lambda name: None, checks))
    assert findings["first"].state is State.FAILED
    assert "--timeout 0.5" in findings["first"].found
    assert findings["second"].state is State.SKIPPED


async def test_a_broker_that_goes_away_fails_the_check_that_it_was_at(embedded: EmbeddedBroker) -> None:
    async with FaultProxy(embedded.url) as proxy:

        async def cut(visit: Visit) -> Finding:
            proxy.refuse()
            proxy.reset()
            await asyncio.sleep(0.1)
            return ok("cut")

        checks = [check for check in CHECKS if check.name != "retry"]
        checks.insert(NAMES.index("round trip"), Check("cut", cut))
        async with Visit(ConnectionSettings.from_url(proxy.url), None, 10.0) as visit:
            findings = dict(await examine(visit, lambda name: None, checks))
    assert findings["round trip"].state is State.FAILED
    assert findings["round trip"].found
