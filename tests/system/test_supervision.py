"""The process layer: a real supervisord under our supervisord.conf, with small programs in place of the two.

All but the two `command=` lines, and who starts Chroma, is the conf we ship.
"""

import asyncio
import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from supervisor.xmlrpc import Faults

from gateway.errors import ConfigError, Unavailable
from gateway.supervisor.client import SupervisedProcess
from gateway.supervisor.plugin import MAX_DEATHS
from gateway.supervisor.serve import serve

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
SUPERVISORD = [str(Path(sys.executable).with_name("supervisord")), "-c", "supervisord.conf"]
SERVE = [sys.executable, "-P", "-c", "from gateway.supervisor.serve import serve; serve(None)"]

# Notes in `<name>.log` when it starts, is told to stop, and ends. Arguments: its name, then what it does:
# `exit=STATUS` by itself `after=SECONDS`, or when told to stop: `drain=SECONDS`, then exit `stop=STATUS`.
PROGRAM = """
import os, signal, sys, time
name, does = sys.argv[1], dict(word.split("=") for word in sys.argv[2:])
def note(what):
    with open(name + ".log", "a") as log:
        print(what, os.getpid(), time.monotonic(), file=log)
def stop(*_):
    note("told")
    time.sleep(float(does.get("drain", 0)))
    note("end")
    os._exit(int(does.get("stop", 0)))
signal.signal(signal.SIGTERM, stop)
os.write(1, f"{name} says hello, {os.isatty(1)}\\n".encode())
os.write(2, f"{name} complains\\n".encode())
note("start")
time.sleep(float(does.get("after", 0 if "exit" in does else 3600)))
note("end")
os._exit(int(does["exit"]))
"""


def eventually(what: Callable[[], T]) -> T:
    deadline = time.monotonic() + 60
    while not (value := what()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
    return value


async def reach(chroma: SupervisedProcess, state: str) -> int:
    """Wait until Chroma is in `state`; return its pid."""
    async with asyncio.timeout(10):
        while (found := await chroma.state())[0] != state:
            await asyncio.sleep(0.02)
    return found[1] or 0


class Gateway:
    """One working directory, and the supervisord in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"unix://{directory}/var/supervisor.sock"
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "var").mkdir()
        (directory / "program.py").write_text(PROGRAM)

    def start(self, command: list[str], chroma: str = "", gateway: str = "", stdout: int | None = None) -> None:
        conf = (ROOT / "supervisord.conf").read_text()
        for name, does in (("chroma", chroma), ("gateway", gateway)):
            ours = f"{sys.executable} -ISu program.py {name} {does}"
            conf, replaced = re.subn(rf"(\[program:{name}\]\n)command=.*\n", rf"\1command={ours}\n", conf)
            assert replaced == 1
        # The program in place of the gateway starts nothing, and sets no level.
        for ours, here in (("autostart=false", "autostart=true"), ("loglevel=warn", "loglevel=info")):
            conf, replaced = re.subn(f"^{ours}$", here, conf, flags=re.M)
            assert replaced == 1
        (self.directory / "supervisord.conf").write_text(conf)
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def notes(self, program: str, what: str) -> list[tuple[int, float]]:
        """Pid and monotonic time of everything `program` noted as `what`, oldest first."""
        log = self.directory / f"{program}.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), float(when)) for noted, pid, when in lines if noted == what]

    def wait_for(self, program: str, what: str, times: int = 1) -> tuple[int, float]:
        """Wait until `program` noted `what` for the `times`th time; return that note."""
        eventually(lambda: len(self.notes(program, what)) >= times)
        return self.notes(program, what)[times - 1]

    def wait_until_up(self, times: int = 1) -> None:
        for program in ("chroma", "gateway"):
            self.wait_for(program, "start", times)

    @property
    def output(self) -> str:
        return (self.directory / "output").read_text()

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def status(self) -> int:
        """supervisord's exit status, once it ended. It shows whether a program had to be killed."""
        assert self.process
        return self.process.wait(60)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for program in ("chroma", "gateway"):
            for pid, _ in self.notes(program, "start"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def gateway_process() -> Iterator[Gateway]:
    # Not tmp_path: the path of a Unix socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp")).resolve()
    gateway_process = Gateway(directory)
    yield gateway_process
    gateway_process.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize("command", [SUPERVISORD, SERVE], ids=["supervisord", "serve"])
@pytest.mark.parametrize(
    ("ends", "other", "after_s", "status"),
    [("chroma", "gateway", 0.5, 3), ("gateway", "chroma", 1.2, 2), ("gateway", "chroma", 0.5, 4)],
    ids=["chroma", "gateway", "gateway-within-startsecs"],
)
def test_permanent_status_becomes_the_containers(
    gateway_process: Gateway, command: list[str], ends: str, other: str, *, after_s: float, status: int
) -> None:
    """A status of the contract stops the other program and ends the gateway with it, without a retry."""
    does = {ends: f"exit={status} after={after_s}"}
    gateway_process.start(command, chroma=does.get("chroma", ""), gateway=does.get("gateway", ""))
    assert gateway_process.status() == status
    assert len(gateway_process.notes(ends, "start")) == 1
    (_, failed), (_, told) = gateway_process.notes(ends, "end")[0], gateway_process.notes(other, "told")[0]
    assert failed < told
    assert len(gateway_process.notes(other, "end")) == 1
    assert not list((gateway_process.directory / "var").iterdir())
    assert f"{ends} ended with status {status}" in gateway_process.output


def test_program_that_cannot_be_started_ends_the_gateway(gateway_process: Gateway) -> None:
    """A program that fails within `startsecs` is retried a few times, then its status is the gateway's."""
    gateway_process.start(SUPERVISORD, gateway="exit=101")
    assert gateway_process.status() == 101
    assert len(gateway_process.notes("gateway", "start")) == 4
    assert len(gateway_process.notes("chroma", "end")) == 1


def test_crash_loop_that_outlives_startsecs_ends_the_gateway(gateway_process: Gateway) -> None:
    """A program that comes up and dies again and again, even with status 0, ends the gateway with a failure."""
    gateway_process.start(SUPERVISORD, gateway="exit=0 after=1.1")
    assert gateway_process.status() == 1
    assert len(gateway_process.notes("gateway", "start")) == MAX_DEATHS + 1
    assert len(gateway_process.notes("chroma", "end")) == 1


async def test_only_the_gateway_starts_a_chroma_that_died(gateway_process: Gateway) -> None:
    """supervisord leaves it dead and says so; the start by the gateway is one start."""
    gateway_process.start(SUPERVISORD)
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    gateway_process.wait_until_up()
    assert not await chroma.has_died()
    os.kill(await reach(chroma, "RUNNING"), signal.SIGKILL)
    await reach(chroma, "EXITED")
    assert (await chroma.has_died(), await chroma.is_running()) == (True, False)
    await chroma.start(5)
    again, _ = gateway_process.wait_for("chroma", "start", 2)
    assert await chroma.state() == ("RUNNING", again)
    assert not await chroma.has_died()
    assert len(gateway_process.notes("gateway", "start")) == 1
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0


async def until_dead(gateway_process: Gateway, chroma: SupervisedProcess, deaths: int) -> None:
    gateway_process.wait_for("chroma", "end", deaths)
    await reach(chroma, "EXITED")


async def start_to_die(chroma: SupervisedProcess) -> None:
    with contextlib.suppress(Unavailable):  # it may have ended before its state was asked for, and is started again
        await chroma.start(0.5)


async def test_deaths_can_be_forgotten(gateway_process: Gateway) -> None:
    """The gateway says so over supervisord's socket when it knows what Chroma died of."""
    gateway_process.start(SUPERVISORD, chroma="exit=101 after=0.2")
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    for deaths in range(1, MAX_DEATHS + 3):
        await until_dead(gateway_process, chroma, deaths)
        await chroma.forget_deaths()
        await start_to_die(chroma)
    # A death during the stop would be told by the exit status.
    await until_dead(gateway_process, chroma, MAX_DEATHS + 3)
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0


async def test_chroma_that_dies_too_often_ends_everything(gateway_process: Gateway) -> None:
    """Whoever starts it again, six deaths in a minute are enough."""
    gateway_process.start(SUPERVISORD, chroma="exit=101 after=0.2")
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    gateway_process.wait_for("chroma", "end")
    with contextlib.suppress(Unavailable):  # supervisord ends, and its socket with it
        while True:
            await reach(chroma, "EXITED")
            await start_to_die(chroma)
    assert gateway_process.status() == 101
    assert len(gateway_process.notes("chroma", "start")) == MAX_DEATHS + 1
    assert "chroma ended 6 times in 60 s" in gateway_process.output


@pytest.mark.parametrize("drain_s", [2, pytest.param(8, marks=pytest.mark.soak)])
def test_gateway_stops_first_and_has_its_time(gateway_process: Gateway, drain_s: int) -> None:
    """On SIGTERM Chroma runs on until a gateway that needs its 8 s has ended by itself; status 0."""
    gateway_process.start(SUPERVISORD, gateway=f"drain={drain_s}")
    gateway_process.wait_until_up()
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0
    assert gateway_process.notes("gateway", "end")[0][1] <= gateway_process.notes("chroma", "told")[0][1]
    assert len(gateway_process.notes("chroma", "end")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("command", [SUPERVISORD, SERVE], ids=["supervisord", "serve"])
def test_signal_stops_the_gateway(gateway_process: Gateway, command: list[str], number: int) -> None:
    """SIGTERM, Ctrl-C and a closed terminal end both programs by themselves, with status 0."""
    gateway_process.start(command)
    gateway_process.wait_until_up()
    gateway_process.signal(number)
    assert gateway_process.status() == 0
    assert len(gateway_process.notes("gateway", "end")) == len(gateway_process.notes("chroma", "end")) == 1
    assert not list((gateway_process.directory / "var").iterdir())


def test_stop_between_two_tries_is_a_success(gateway_process: Gateway) -> None:
    """SIGTERM while a failing program waits for its next try is an ordinary stop."""
    gateway_process.start(SUPERVISORD, gateway="exit=1")
    eventually(lambda: "exited: gateway" in gateway_process.output)
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0


def test_final_snapshot_that_failed_shows(gateway_process: Gateway) -> None:
    """A gateway that ends its drain with "store unreachable" makes that the gateway's status."""
    gateway_process.start(SUPERVISORD, gateway="stop=3")
    gateway_process.wait_until_up()
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 3
    assert len(gateway_process.notes("chroma", "end")) == 1


async def test_live_restores_stop_and_start_chroma(gateway_process: Gateway) -> None:
    """Stopping and starting Chroma, more often than it may crash, is no crash; doing so twice is no error."""
    gateway_process.start(SUPERVISORD, chroma="drain=0.1")
    gateway_process.wait_until_up()
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    for turn in range(MAX_DEATHS + 2):
        await chroma.stop(5)
        await chroma.stop(5)
        assert await chroma.state() == ("STOPPED", None)
        await chroma.start(5)
        await chroma.start(5)
        gateway_process.wait_for("chroma", "start", turn + 2)
    assert len(gateway_process.notes("chroma", "start")) == MAX_DEATHS + 3
    assert gateway_process.process
    assert gateway_process.process.poll() is None
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0


async def test_stopped_means_stopped_even_as_chroma_dies(gateway_process: Gateway) -> None:
    """A Chroma that dies just before it is stopped is not running when the stop returns, nor afterwards."""
    gateway_process.start(SUPERVISORD)
    gateway_process.wait_until_up()
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    for turn in range(2):
        os.kill(await reach(chroma, "RUNNING"), signal.SIGKILL)
        await chroma.stop(15)
        assert not await chroma.is_running()
        assert len(gateway_process.notes("chroma", "start")) == turn + 1
        await chroma.start(5)
        gateway_process.wait_for("chroma", "start", turn + 2)


async def test_a_stop_is_repeated_until_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Chroma that is started at the same moment is stopped again."""
    states, stops = iter(["STARTING", "RUNNING", "STOPPING", "STOPPED"]), []

    def answer(_url: str, method: str, args: tuple[object, ...], accept: int | None) -> object:
        if method == "supervisor.getProcessInfo":
            return {"statename": next(states), "pid": 0, "start": 0}
        stops.append((method, args, accept))
        return None

    monkeypatch.setattr("gateway.supervisor.client._call", answer)
    await SupervisedProcess("unix://not-used.sock", "chroma").stop(5)
    assert stops == [("supervisor.stopProcess", ("chroma", False), Faults.NOT_RUNNING)] * 4


async def test_slow_stop_is_bounded_and_a_start_waits_for_it(gateway_process: Gateway) -> None:
    """A stop that takes too long says so; a start right after waits for its end and gives a fresh process."""
    gateway_process.start(SUPERVISORD, chroma="drain=1")
    gateway_process.wait_until_up()
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    with pytest.raises(Unavailable, match=r"longer than 0\.2 s"):
        await chroma.stop(0.2)
    await chroma.start(5)
    assert gateway_process.wait_for("chroma", "start", 2)[1] > gateway_process.notes("chroma", "end")[0][1]


async def test_stopping_supervisord_refuses_with_unavailable(gateway_process: Gateway) -> None:
    """While the gateway stops, and when it is gone, no foreign exception reaches the caller."""
    gateway_process.start(SUPERVISORD, gateway="drain=1")
    gateway_process.wait_until_up()
    chroma = SupervisedProcess(gateway_process.url, "chroma")
    gateway_process.signal(signal.SIGTERM)
    gateway_process.wait_for("gateway", "told")
    with pytest.raises(Unavailable, match="SHUTDOWN_STATE"):
        await chroma.stop(5)
    assert gateway_process.status() == 0
    for call in (chroma.state(), chroma.start(1), chroma.stop(1)):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await call


async def test_silent_supervisord_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisord that accepts and never answers costs the timeout and no more."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("silent.sock")
        listener.listen()
        monkeypatch.setattr("gateway.supervisor.client._CALL_TIMEOUT_S", 0.3)
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match=r"longer than 0\.1 s"):
                await SupervisedProcess("unix://silent.sock", "chroma").stop(0.1)


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<?xml version='1.0'?><methodResp"]
)
async def test_supervisord_that_ends_within_its_reply_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    """As one that cannot be reached, after one call: whoever asked knows whether to ask again."""
    monkeypatch.chdir(tmp_path)
    calls = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"</methodCall>")
        writer.write(reply)
        writer.close()

    async with await asyncio.start_unix_server(answer, "broken.sock"):
        with pytest.raises(Unavailable, match="supervisord cannot be reached"):
            await SupervisedProcess("unix://broken.sock", "chroma").state()
    assert calls == 1


SAID = ["chroma says hello, False", "chroma complains", "gateway says hello, False", "gateway complains"]


def output_of(kind: str, directory: Path) -> tuple[int, int]:
    """A descriptor to read from and the one to give supervisord as its stdout."""
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        return pty.openpty()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    file = directory / "stdout"
    return os.open(file, os.O_RDONLY | os.O_CREAT), os.open(file, os.O_WRONLY)


@pytest.mark.parametrize("kind", ["pipe", "file", "socket", "terminal"])
def test_output_passes_through(gateway_process: Gateway, kind: str) -> None:
    """What the programs write arrives where supervisord's own lines do; a terminal is one to them too."""
    reader, writer = output_of(kind, gateway_process.directory)
    try:
        gateway_process.start(SUPERVISORD, stdout=writer)
        gateway_process.wait_until_up()
        gateway_process.signal(signal.SIGTERM)
        assert gateway_process.status() == 0
        said = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.close(writer)
    for line in SAID:
        # Chroma's lines are read and given the form of ours.
        assert line.replace("False", str(kind == "terminal" and line.startswith("gateway"))) in said
    assert said.index("spawned: 'chroma'") < said.index("stopped: gateway") < said.index("stopped: chroma")


def test_closed_terminal_stops_the_gateway(gateway_process: Gateway) -> None:
    """When the terminal is gone supervisord cannot write its log, and still stops its programs in order."""
    terminal, writer = pty.openpty()
    gateway_process.start(SUPERVISORD, gateway="drain=0.5", stdout=writer)
    os.close(writer)
    gateway_process.wait_until_up()
    os.close(terminal)
    gateway_process.signal(signal.SIGHUP)
    gateway_process.status()
    assert gateway_process.notes("gateway", "end")[0][1] <= gateway_process.notes("chroma", "told")[0][1]
    assert len(gateway_process.notes("chroma", "end")) == 1
    assert not list((gateway_process.directory / "var").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_killed_supervisord_takes_its_programs_along(gateway_process: Gateway) -> None:
    """kill -9 of supervisord leaves nobody on the ports, and the next one starts over the stale socket."""
    gateway_process.start(SUPERVISORD)
    gateway_process.wait_until_up()
    gateway_process.signal(signal.SIGKILL)
    gateway_process.status()
    for program in ("chroma", "gateway"):
        gateway_process.wait_for(program, "end")
    gateway_process.start(SERVE)
    gateway_process.wait_until_up(times=2)
    gateway_process.signal(signal.SIGTERM)
    assert gateway_process.status() == 0


@pytest.fixture
def run_here(gateway_process: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.chdir(gateway_process.directory)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("would have replaced this very process"))
    return gateway_process


def test_second_gateway_is_refused(run_here: Gateway) -> None:
    """Where one runs already, another start is a configuration error, and the first one goes on."""
    run_here.start(SUPERVISORD)
    run_here.wait_until_up()
    with pytest.raises(ConfigError, match="another gateway already runs here"):
        serve(None)
    run_here.signal(signal.SIGTERM)
    assert run_here.status() == 0


def test_missing_configuration_is_refused(run_here: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a supervisord.conf the message says where one was looked for."""
    with pytest.raises(ConfigError, match=r"there is no elsewhere\.conf"):
        serve(Path("elsewhere.conf"))
    monkeypatch.setattr("gateway.__file__", str(run_here.directory / "gateway" / "__init__.py"))
    with pytest.raises(ConfigError, match=re.escape(str(run_here.directory))):
        serve(None)


def test_too_long_directory_is_refused(run_here: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory too deep for a Unix socket is named, instead of supervisord's `socket.error`."""
    deep = run_here.directory / ("d" * 100)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with pytest.raises(ConfigError, match="d" * 100):
        serve(ROOT / "supervisord.conf")


def test_own_commands_come_first(gateway_process: Gateway) -> None:
    """`serve` finds the commands beside its interpreter, whatever the caller's PATH and directory hold."""
    (gateway_process.directory / "supervisor.py").write_text("raise SystemExit('this is not supervisor')")
    beside = Path(sys.executable).parent
    conf = (ROOT / "supervisord.conf").read_text()
    conf = re.sub("^command=.*$", "command=sh -c 'echo PATH is $PATH; exit 4'", conf, flags=re.M)
    (gateway_process.directory / "supervisord.conf").write_text(conf)
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        SERVE, check=False, cwd=gateway_process.directory, env=env, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 4
    # The first of the two programs to end is the end of the other, which may not have spoken yet.
    assert f"PATH is {beside}:/usr/bin:/bin" in done.stdout + done.stderr
    assert " CRIT " not in done.stdout + done.stderr  # also as root, and with a socket that asks for no password
