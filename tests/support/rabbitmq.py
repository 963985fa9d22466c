"""A private RabbitMQ node for tests: its own ports, folder, Erlang cookie and port mapper, on loopback only.

By hand, in the foreground, until Ctrl-C: ``python -m tests.support.rabbitmq``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tests.support.tls import TLSFiles

AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
#: Where packages put the programs that any user may run; Debian's wrappers on PATH insist on root or rabbitmq.
PROGRAM_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")
LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQUnavailableError(Exception):
    """No RabbitMQ server is installed here, or its node does not start."""


@dataclass(frozen=True)
class RabbitMQServer:
    """A RabbitMQ that is installed here: its programs, and the version that they say they are."""

    programs: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"rabbitmq-{'.'.join(map(str, self.version))}"


@functools.cache
def find_servers() -> tuple[RabbitMQServer, ...]:
    """Returns every RabbitMQ server here, one of each version.

    They are those of `LEVERET_RABBITMQ_BIN`, which names one folder or several, separated as in PATH. Without it: the
    system's first, then those that tools/debian.sh has put into its cache. tools/rabbitmq.sh looks in the same places.

    Raises:
        RabbitMQUnavailableError: `LEVERET_RABBITMQ_BIN` names a folder without a server, or a program does not run.
    """
    found: dict[tuple[int, ...], RabbitMQServer] = {}
    for folder in _program_folders():
        version = _version_of(folder)
        found.setdefault(version, RabbitMQServer(folder, version))
    return tuple(found.values())


def find_server() -> RabbitMQServer:
    """Returns the first of `find_servers`.

    Raises:
        RabbitMQUnavailableError: There is none.
    """
    servers = find_servers()
    if not servers:
        raise RabbitMQUnavailableError("no RabbitMQ server found: run `make rabbitmq`, or set LEVERET_RABBITMQ_BIN")
    return servers[0]


def _program_folders() -> list[Path]:
    if given := os.environ.get("LEVERET_RABBITMQ_BIN"):
        folders = [Path(folder) for folder in given.split(os.pathsep) if folder]
        for folder in folders:
            if not _has_programs(folder):
                raise RabbitMQUnavailableError(f"LEVERET_RABBITMQ_BIN names {folder}, where no RabbitMQ server is")
        return folders
    on_path = shutil.which("rabbitmq-server")
    systems = [Path(folder) for folder in (*PROGRAM_FOLDERS, on_path and os.path.dirname(on_path)) if folder]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cached = Path(os.environ.get("LEVERET_CACHE") or Path(cache, "leveret")).glob("rabbitmq-*")
    # The newest of the cache first.
    newest = sorted(filter(_has_programs, cached), key=_version_of, reverse=True)
    return [*[folder for folder in systems if _has_programs(folder)][:1], *newest]


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("rabbitmq-server", "rabbitmqctl"))


def _version_of(folder: Path) -> tuple[int, ...]:
    known = folder / "version"  # tools/debian.sh writes it: asking takes half a second in every process of pytest-xdist
    text = known.read_text() if known.exists() else ask_version(folder)
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text.strip())
    if match is None:
        raise RabbitMQUnavailableError(
            f"{folder} has a RabbitMQ server of version {text.strip()!r}, which is no version"
        )
    return tuple(map(int, match.groups()))


def ask_version(folder: Path) -> str:
    """Returns what the server's own program prints as its version."""
    port = str(free_ports(1)[0])
    # rabbitmqctl starts an epmd, which would stay behind and listen on all addresses.
    environment = os.environ | {"ERL_EPMD_PORT": port, "ERL_EPMD_ADDRESS": "127.0.0.1"}
    done = subprocess.run(
        [folder / "rabbitmqctl", "version"], env=environment, capture_output=True, text=True, timeout=60
    )
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["epmd", "-port", port, "-kill"], env=environment, capture_output=True, timeout=60)
    if done.returncode != 0:
        raise RabbitMQUnavailableError(f"`{folder}/rabbitmqctl version` failed: {done.stderr.strip()}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that were free a moment ago, all different.

    The system does not give them to outgoing connections (`ip_local_port_range` begins at 32768), which would take one
    before its server does, or while its server is stopped.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = random.randrange(20_000, 32_000)
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # in use
                sock.bind(("127.0.0.1", port))
                found.append(port)
        return found


class RabbitMQNode:
    """One RabbitMQ node, and every process it needs.

    The ports, the data and the name outlive ``stop()``: a stopped or killed node starts again as the same one. No
    process of it outlives the one that made it, however that ends: a guard holds the other end of a pipe.

    Example::

        with RabbitMQNode() as node:
            print(node.url)

    Args:
        folder: Where data, logs and configuration lie. Default: a temporary folder, which ``close`` removes.
        server: Which of the servers here; the first of ``find_servers`` unless given.
        tls: Adds an ``amqps`` listener that shows this certificate. Clients need none.
        plugins: Names of RabbitMQ plugins to enable.
        config: Further lines of ``rabbitmq.conf``.
        erl_args: Further arguments of the Erlang VM; ``+S 1:1 +sbwt none`` keeps several nodes off each other's cores.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        server: RabbitMQServer | None = None,
        tls: TLSFiles | None = None,
        plugins: tuple[str, ...] = (),
        config: str = "",
        erl_args: str = "",
    ) -> None:
        server = server or find_server()
        self.programs = server.programs
        self.version = server.version
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="leveret-rabbitmq-")
            folder = Path(self._temporary.name)
        self.folder = folder
        self.port, self.tls_port, dist_port, epmd_port = free_ports(4)
        self.name = f"leveret-{self.port}@localhost"
        self.log_file = self.folder / "server.log"
        self._processes: list[subprocess.Popen[bytes]] = []  # epmd, which leads their process group, and the server
        self._guard: subprocess.Popen[bytes] | None = None

        lines = [f"listeners.tcp.local = 127.0.0.1:{self.port}", config]
        if tls is not None:
            lines.append(f"listeners.ssl.local = 127.0.0.1:{self.tls_port}")
            for option, file in (("cacertfile", tls.authority), ("certfile", tls.certificate), ("keyfile", tls.key)):
                # A server in a folder of its own (tools/debian.sh) sees the node's folder and not every other.
                lines.append(f"ssl_options.{option} = {shutil.copyfile(file, self.folder / f'{option}.pem')}")
            lines.append("ssl_options.verify = verify_none")
        self._has_tls = tls is not None
        self._write("rabbitmq.conf", "\n".join(lines) + "\n")
        self._write("advanced.config", "[].\n")
        self._write("enabled_plugins", f"[{','.join(plugins)}].\n")
        self._write("rabbitmq-env.conf", "")
        # Nothing of the caller's RABBITMQ_* and ERL_* reaches the node, nor of the machine's /etc/rabbitmq.
        self._environment = {
            # Last its own programs: epmd of any version serves every other.
            "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{self.programs}",
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # the Erlang cookie is made here
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{LOOPBACK_ONLY} {erl_args}",
            "RABBITMQ_CTL_ERL_ARGS": LOOPBACK_ONLY,
        }

    @property
    def url(self) -> str:
        """The node's ``amqp://`` URL, with the guest user and the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The node's ``amqps://`` URL by the name ``localhost``."""
        if not self._has_tls:
            raise ValueError(f"node {self.name} has no TLS listener: give it tls=")
        return f"amqps://guest:guest@localhost:{self.tls_port}"

    def start(self, timeout: float = 60.0) -> None:
        """Starts the node, and returns when clients can connect.

        Args:
            timeout: Seconds until it counts as failed.

        Raises:
            RabbitMQUnavailableError: it ended or was not ready in time; the message carries the end of its log.
        """
        if self._processes:
            raise RuntimeError(f"node {self.name} is running")
        try:
            # In the foreground, as our child: a node that finds no port mapper starts one as a daemon, which stays.
            epmd = self._spawn("epmd", "-address", "127.0.0.1", "-port", self._environment["ERL_EPMD_PORT"])
            self._guard = self._watch(epmd.pid)
            self._spawn(str(self.programs / "rabbitmq-server"), group=epmd.pid)
            self._wait_until_ready(timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = 30.0) -> None:
        """Shuts the node down in order, and ends every process of it. Does nothing when it is not running.

        Args:
            timeout: Seconds until it is killed instead.
        """
        try:
            if self._processes:
                server = self._processes[1]
                server.terminate()  # its shell hands this on to the Erlang VM, and waits for it
                server.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Kills every process of the node at once, as a crash would. Does nothing when it is not running."""
        if self._guard is not None:
            self._guard.kill()  # first: once the group is waited for, its number may belong to somebody else
            self._guard.communicate()
            self._guard = None
        if self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes[0].pid, signal.SIGKILL)
            for process in self._processes:
                process.wait()
            self._processes.clear()

    def close(self) -> None:
        """Stops the node and removes the folder it made for itself."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Runs ``rabbitmqctl`` against this node; returns what it printed.

        Raises:
            RuntimeError: it failed; the message carries what it said.
        """
        command = [str(self.programs / "rabbitmqctl"), "--quiet", "--node", self.name, *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed: {said}")
        return done.stdout.strip()

    def alarm(self, on: bool) -> None:
        """Raises or clears a memory alarm: while it lasts, the node blocks every connection that publishes."""
        memory = "{resource_limit, memory, node()}"
        self.ctl("eval", f"rabbit_alarm:set_alarm({{{memory}, []}})." if on else f"rabbit_alarm:clear_alarm({memory}).")

    def log(self) -> str:
        """Returns the broker's own log so far."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.folder / "log").glob("*.log")))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _spawn(self, *command: str, group: int = 0) -> subprocess.Popen[bytes]:
        # A process group of its own: Ctrl-C at the terminal reaches us only, and we stop the node in order.
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=group,
            )
        self._processes.append(process)
        return process

    def _watch(self, group: int) -> subprocess.Popen[bytes]:
        # `read` ends when the last writer of its pipe is gone, which is this process, whatever ends it.
        script = 'read -r _; kill -s KILL -- "-$0"'
        return subprocess.Popen(
            ["/bin/sh", "-c", script, str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._answers():
            ended = self._processes[1].poll()
            if ended is not None or time.monotonic() > deadline:
                what = f"was not ready within {timeout} s" if ended is None else f"ended with status {ended}"
                tail = "\n".join((self.log_file.read_text(errors="replace") + self.log()).splitlines()[-30:])
                raise RabbitMQUnavailableError(f"RabbitMQ node {self.name} {what}; the end of its log:\n{tail}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        # A port that accepts is not enough: while it boots, a node accepts and closes. connection.start is the first
        # frame of a broker that is there: type 1 (method), channel 0. The listener for TLS may begin after that.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(AMQP_HEADER)
                ready = sock.recv(3) == b"\x01\x00\x00"
            if ready and self._has_tls:
                socket.create_connection(("127.0.0.1", self.tls_port), timeout=5).close()
            return ready
        except OSError:
            return False


async def listed(node: RabbitMQNode, name: str, *columns: str) -> list[list[str]]:
    """What the broker lists of the connections with this name."""
    arguments = ("list_connections", "--no-table-headers", "client_properties", *columns)
    table = await asyncio.to_thread(node.ctl, *arguments)
    rows = [line.split("\t") for line in table.splitlines()]
    return [row[1:] or row for row in rows if f'{{"connection_name","{name}"}}' in row[0]]


def main() -> None:
    """Runs a node in the foreground and prints its URL; Ctrl-C or SIGTERM stops it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Both: a shell that starts it in the background has it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with contextlib.suppress(KeyboardInterrupt), RabbitMQNode() as node:
        print(f"{node.url}  (Ctrl-C stops it; data and logs: {node.folder})", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
