"""What supervisord does when a program ends: restart it, or end everything with a telling status.

Runs inside supervisord as the `[rpcinterface:gateway]` of supervisord.conf. The platform can only
help by replacing the container, and it can only see the exit status of supervisord itself:

- A program that ends with a status of the contract (2 to 5) would end so again: no retries.
- A program that supervisord gives up on, or that dies six times in a minute, cannot be kept up.
- In both cases the programs stop in their usual order and supervisord exits with that status.
- A program killed by a signal, once or now and then, is restarted. Deaths whose cause the gateway found and put away
  do not count (`Methods.forget_deaths`).
- SIGTERM, SIGINT, SIGQUIT and SIGHUP stop everything and exit with 0, unless the stop went wrong: a
  program then ended with a status of its own (the final snapshot could not be taken), or had to be
  killed because it did not end in time (1).

supervisord has no setting for any of this, nor for handing a program its own stdout, so `_Plugin`
replaces some methods of its options object; the system tests hold it to them.
"""

import ctypes
import functools
import os
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from supervisor import events
from supervisor.loggers import LevelsByName
from supervisor.states import SupervisorStates, getProcessStateDescription

from gateway.chroma.native import environment_for_chroma
from gateway.observability.chroma_lines import ChromaLines

PERMANENT = {
    2: "a wrong setting",
    3: "the store cannot be reached or denies access",
    4: "nothing to restore",
    5: "a corrupt or incompatible snapshot",
}
# `gateway.chroma.managed` pauses before it starts Chroma again, and counts with the same numbers.
MAX_DEATHS = 5
DEATHS_WINDOW_S = 60


class End(NamedTuple):
    """All programs are to stop and supervisord to exit with `status`; `reason` is one line for the log."""

    status: int
    reason: str


class Watch:
    """Judges every end of a program. Pure but for its memory of the last minute's deaths."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: defaultdict[str, deque[float]] = defaultdict(deque)
        self._last_status: dict[str, int | None] = {}

    def judge(self, program: str, state: str, status: int | None, stopping: bool) -> End | None:
        """Say whether everything must end because `program` entered `state`; None means carry on.

        `state` is supervisord's: EXITED (ended by itself), BACKOFF (the same before it counted as
        started), FATAL (given up), STOPPED (as it was told to); others do not matter. `status` is
        the exit status, negative for a signal, None where there was no process. `stopping` says
        that supervisord is already ending.
        """
        if stopping:
            return _judge_stop(program, state, status)
        if state == "STOPPED":
            self.forget_deaths(program)
        elif state == "FATAL":
            last = self._last_status.get(program)
            return End(last if last and last > 0 else 1, f"{program} cannot be started")
        elif state in ("EXITED", "BACKOFF"):
            if status in PERMANENT:
                return End(status, f"{program} ended with status {status}: {PERMANENT[status]}")
            return self._judge_death(program, status)
        return None

    def forget_deaths(self, program: str) -> None:
        """The deaths of `program` so far do not count: their cause is known, and gone."""
        self._deaths.pop(program, None)

    def _judge_death(self, program: str, status: int | None) -> End | None:
        self._last_status[program] = status
        now, deaths = self._clock(), self._deaths[program]
        deaths.append(now)
        while now - deaths[0] > DEATHS_WINDOW_S:
            deaths.popleft()
        if len(deaths) <= MAX_DEATHS:
            return None
        reason = f"{program} ended {len(deaths)} times in {DEATHS_WINDOW_S} s"
        return End(status if status and status > 0 else 1, reason)


def _judge_stop(program: str, state: str, status: int | None) -> End | None:
    if state in ("STOPPED", "EXITED", "BACKOFF") and status and status > 0:
        return End(status, f"{program} stopped with status {status}: {PERMANENT.get(status, 'see its last lines')}")
    if state == "STOPPED" and status == -signal.SIGKILL:
        return End(1, f"{program} did not stop in time")
    return None


class Methods:
    """What the namespace `gateway` offers over XML-RPC."""

    def __init__(self, watch: Watch, log: Callable[[bool, str], None]) -> None:
        self._watch, self._log = watch, log

    def log_as(self, as_json: bool, level: str) -> bool:
        """Write Chroma's lines in the form of the gateway's, and no line, also of supervisord's, below `level`.

        Holds for Chroma's next start. Always true: XML-RPC has no None.
        """
        self._log(as_json, level)
        return True

    def forget_deaths(self, program: str) -> bool:
        """See `Watch.forget_deaths`. Always true."""
        self._watch.forget_deaths(program)
        return True


def make(supervisord: Any) -> Methods:
    """The factory that supervisord.conf names."""
    watch = Watch()
    return Methods(watch, _Plugin(supervisord.options, watch).log_as)


class _Plugin:
    """Ties a `Watch` to supervisord's events, and its verdict to supervisord's exit status."""

    def __init__(self, options: Any, watch: Watch) -> None:
        self._options, self._watch = options, watch
        self._new_lines: Callable[[], ChromaLines] = ChromaLines
        self._waker = _Waker(options.get_socket_map())
        self._end: End | None = None
        self._reaped = (0, 0)
        self._waitpid, self._close_logger = options.waitpid, options.close_logger
        options.waitpid = self._remember_status
        options.close_logger = self._exit
        options.make_pipes = _pipe_chroma
        self._lines: dict[int, ChromaLines] = {}
        options.setpgrp = _leave_group
        options.execve = _exec
        for handler in options.logger.handlers:
            handler.handleError = _lose_line
        options.logger.critical = functools.partial(_log_critical, options.logger.critical)
        events.subscribe(events.ProcessStateEvent, self._on_process)
        events.subscribe(events.SupervisorStoppingEvent, self._on_stopping)
        events.subscribe(events.ProcessLogStdoutEvent, self._on_output)

    def log_as(self, as_json: bool, level: str) -> None:
        self._new_lines = functools.partial(ChromaLines, as_json=as_json, level=level)
        if level == "error":  # supervisord.conf leaves out what is below a warning
            self._options.logger.level = LevelsByName.ERRO

    def _on_output(self, event: Any) -> None:
        lines = self._lines.setdefault(event.pid, self._new_lines())
        _write(lines.take(event.data))

    def _remember_status(self) -> tuple[int | None, int | None]:
        # A state event carries no exit status, and BACKOFF forgets it (supervisor/process.py, `finish`).
        pid, wait_status = self._waitpid()
        if pid:
            self._reaped = (pid, os.waitstatus_to_exitcode(wait_status))
        return pid, wait_status

    def _on_process(self, event: Any) -> None:
        self._waker.wake()
        process = event.process
        pid, status = self._reaped
        stopping = self._options.mood < SupervisorStates.RUNNING
        end = self._watch.judge(
            process.config.name,
            getProcessStateDescription(process.state),
            status if pid and process.pid == pid else None,
            stopping,
        )
        if status is not None and (lines := self._lines.pop(pid, None)) is not None:
            _write(lines.end())
        if end and not self._end:
            self._end = end
            self._options.logger.error(f"{end.reason}; all programs stop, exit status {end.status}")
            self._options.mood = SupervisorStates.SHUTDOWN

    def _on_stopping(self, _event: object) -> None:
        # A reload (SIGHUP, also from a closed terminal) would start everything anew in the background.
        self._options.mood = SupervisorStates.SHUTDOWN

    def _exit(self) -> None:
        # The last thing that supervisor/supervisord.py, `main`, does: all is stopped and cleaned up.
        self._close_logger()
        if self._end:
            sys.exit(self._end.status)


def _lose_line() -> None:
    """Go on when a line of supervisord's own log cannot be written.

    Its terminal or reader is gone then; supervisord would report that there too, and die of it.
    """


def _log_critical(critical: Callable[..., None], message: str, **fields: Any) -> None:
    """Log what is critical, and not that the server asks for no password: only its own user may open its socket."""
    if "without any HTTP authentication" not in message:
        critical(message, **fields)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


def _leave_group() -> None:
    """In a program's new process, before its command: take no part in Ctrl-C, but end with supervisord.

    Where supervisord is killed outright and the machine goes on, its programs would keep the ports
    and the data from its successor. Linux only; elsewhere they stay.
    """
    os.setpgrp()
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exec(path: str, argv: list[str], environment: dict[str, str]) -> None:
    """In a program's new process: become it. Chroma gets no secrets of ours."""
    is_chroma = environment.get("SUPERVISOR_PROCESS_NAME") == "chroma"
    os.execve(path, argv, environment_for_chroma(environment) if is_chroma else environment)  # noqa: S606


class _Waker:
    """Wakes supervisord's loop at once for a signal or a changed state.

    The loop sleeps up to 1 s unless a descriptor is ready, and signals do not interrupt that. Left
    alone it starts the first program, restarts a dead one and notices SIGTERM up to a second late.
    """

    def __init__(self, socket_map: dict[int, Any]) -> None:
        self._readable_fd, self._writable_fd = os.pipe()
        os.set_blocking(self._readable_fd, False)
        os.set_blocking(self._writable_fd, False)
        signal.set_wakeup_fd(self._writable_fd, warn_on_full_buffer=False)
        socket_map[self._readable_fd] = self
        self.wake()

    def wake(self) -> None:
        try:
            os.write(self._writable_fd, b"\0")
        except BlockingIOError:
            pass  # full of wake-ups already

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        # One byte a turn: the loop handles one signal a turn.
        os.read(self._readable_fd, 1)

    def handle_error(self) -> None:
        pass


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass  # nobody reads any more, and ending for that would help nobody


def _pipe_chroma(stderr: bool = True) -> dict[str, int | None]:
    """As `_inherit_output`, but what a program with `redirect_stderr` says comes to `_on_output`.

    supervisord outlives its programs, and reads what a pipe holds when one ends: there is no process more that
    could die, and no line is lost but with supervisord itself.
    """
    pipes = _inherit_output(stderr)
    if not stderr:
        os.close(pipes["child_stdout"] or -1)
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        pipes["stdout"], pipes["child_stdout"] = ours, theirs
    return pipes


def _inherit_output(stderr: bool = True) -> dict[str, int | None]:
    """Descriptors for a program that shares supervisord's stdout and stderr and reads nothing.

    Supervisor would pipe the output through itself and into a file. As that file, /dev/fd/1 loses
    output when stdout is a file (two offsets), cannot be opened when it is a socket or another
    user's pipe, and is never the terminal that the program should see.
    """
    return {
        "stdin": None,
        "stdout": None,
        "stderr": None,
        "child_stdin": os.open(os.devnull, os.O_RDONLY),
        "child_stdout": os.dup(1 if stderr else 2),
        "child_stderr": os.dup(2) if stderr else None,
    }
