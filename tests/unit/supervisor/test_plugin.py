"""The rule by which supervisord ends everything: `gateway.supervisor.plugin.Watch`."""

import signal

import pytest

from gateway.chroma import managed
from gateway.errors import (
    ConfigError,
    CorruptSnapshot,
    GatewayError,
    IncompatibleSnapshot,
    NothingToRestore,
    StorageDenied,
    StorageUnavailable,
)
from gateway.supervisor.plugin import DEATHS_WINDOW_S, MAX_DEATHS, PERMANENT, End, Methods, Watch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch(clock)


def status_of(end: End | None) -> int | None:
    return end.status if end else None


def die(watch: Watch, times: int, program: str = "chroma", status: int | None = -signal.SIGKILL) -> list[int | None]:
    return [status_of(watch.judge(program, "EXITED", status, stopping=False)) for _ in range(times)]


@pytest.mark.parametrize("state", ["EXITED", "BACKOFF"])
@pytest.mark.parametrize("status", sorted(PERMANENT))
def test_permanent_status_ends_everything_at_once(watch: Watch, state: str, status: int) -> None:
    """A status of the contract ends everything the first time, however soon the program ended."""
    end = watch.judge("chroma", state, status, stopping=False)
    assert end is not None
    assert end.status == status
    assert f"chroma ended with status {status}" in end.reason


@pytest.mark.parametrize(
    "error",
    [ConfigError, StorageDenied, StorageUnavailable, NothingToRestore, CorruptSnapshot, IncompatibleSnapshot],
)
def test_every_permanent_error_has_a_permanent_status(error: type[GatewayError]) -> None:
    """What `gateway.errors` exits with is what is not retried; anything unforeseen (1) is."""
    assert error.exit_code in PERMANENT
    assert GatewayError.exit_code not in PERMANENT


@pytest.mark.parametrize("status", [0, 1, 101, -signal.SIGKILL, -signal.SIGSEGV, None])
def test_any_other_end_is_forgiven(watch: Watch, status: int | None) -> None:
    """A crash, a kill or an end with status 0 is no reason to give the container up."""
    assert watch.judge("chroma", "EXITED", status, stopping=False) is None
    assert watch.judge("chroma", "BACKOFF", status, stopping=False) is None


@pytest.mark.parametrize("state", ["STARTING", "RUNNING", "STOPPING", "STOPPED", "UNKNOWN"])
def test_other_states_do_not_matter(watch: Watch, state: str) -> None:
    """Starting, running and being stopped on purpose never end anything, whatever the status."""
    assert [watch.judge("chroma", state, 3, stopping=False) for _ in range(20)] == [None] * 20


def test_crash_loop_ends_everything(watch: Watch) -> None:
    """One death more than the limit within the window is a crash loop."""
    assert die(watch, MAX_DEATHS + 1) == [None] * MAX_DEATHS + [1]


def test_crash_loop_keeps_the_programs_own_status(watch: Watch) -> None:
    """The last exit status says more than a plain 1."""
    assert die(watch, MAX_DEATHS + 1, status=101)[-1] == 101


def test_crash_loop_with_status_0_is_still_a_failure(watch: Watch) -> None:
    """A program that keeps ending with 0 has not been kept up, so the container's status is not 0."""
    assert die(watch, MAX_DEATHS + 1, status=0)[-1] == 1


def test_old_deaths_are_forgotten(watch: Watch, clock: Clock) -> None:
    """Deaths count only within the window: one every 15 s goes on for ever."""
    for _ in range(100):
        assert die(watch, 1) == [None]
        clock.now += DEATHS_WINDOW_S / (MAX_DEATHS - 1)


def test_window_slides(watch: Watch, clock: Clock) -> None:
    """Deaths at both ends of one window are a loop, though a fixed minute would part them."""
    die(watch, 3)
    clock.now += DEATHS_WINDOW_S
    assert die(watch, 3) == [None, None, 1]


def test_a_crash_loop_of_chroma_is_seen_despite_the_pauses() -> None:
    """The gateway pauses before each start. Half of the window at least is left for the starts themselves."""
    pauses_s = sum(min(restarts, managed._LONGEST_PAUSE_S) for restarts in range(MAX_DEATHS))
    assert pauses_s <= DEATHS_WINDOW_S / 2
    assert (managed._MOST_TRIES, managed._REMEMBERED_S) == (MAX_DEATHS, DEATHS_WINDOW_S)


def test_programs_are_counted_apart(watch: Watch) -> None:
    """One program's deaths do not bring the other nearer to its limit."""
    assert die(watch, MAX_DEATHS, "chroma") == die(watch, MAX_DEATHS, "gateway") == [None] * MAX_DEATHS


def test_stop_on_purpose_is_a_new_life(watch: Watch) -> None:
    """A live restore starts Chroma on other data: what killed it before does not count."""
    die(watch, MAX_DEATHS)
    assert watch.judge("chroma", "STOPPED", 0, stopping=False) is None
    assert die(watch, MAX_DEATHS) == [None] * MAX_DEATHS


def log_nothing(_as_json: bool, _level: str) -> None:
    """For methods that are not about the log."""


def test_deaths_whose_cause_is_known_do_not_count(watch: Watch) -> None:
    """However many collections Chroma dies of, it comes up when all of them are left alone."""
    for _ in range(3):
        assert die(watch, MAX_DEATHS) == [None] * MAX_DEATHS
        assert Methods(watch, log_nothing).forget_deaths("chroma")
    assert die(watch, MAX_DEATHS + 1)[-1] == 1


@pytest.mark.parametrize(("last", "expected"), [(101, 101), (1, 1), (0, 1), (-signal.SIGSEGV, 1), (None, 1)])
def test_given_up_ends_with_the_last_status(watch: Watch, last: int | None, expected: int) -> None:
    """FATAL itself knows no status: the last try's counts, and it is never 0."""
    watch.judge("gateway", "BACKOFF", last, stopping=False)
    assert status_of(watch.judge("gateway", "FATAL", None, stopping=False)) == expected


def test_given_up_without_ever_a_process(watch: Watch) -> None:
    """A command that does not exist ends with 1."""
    assert status_of(watch.judge("gateway", "FATAL", None, stopping=False)) == 1


@pytest.mark.parametrize("status", [0, -signal.SIGTERM])
def test_ordinary_stop_is_a_success(watch: Watch, status: int) -> None:
    """A program that ends with 0, or by the very signal, stopped well."""
    assert watch.judge("chroma", "STOPPED", status, stopping=True) is None


def test_dying_while_everything_stops_is_no_crash(watch: Watch) -> None:
    """A program that is killed, or given up, during the stop is not going to be restarted anyway."""
    assert [watch.judge("chroma", "EXITED", -signal.SIGSEGV, stopping=True) for _ in range(20)] == [None] * 20
    assert watch.judge("chroma", "FATAL", None, stopping=True) is None


@pytest.mark.parametrize("state", ["STOPPED", "EXITED"])
def test_final_snapshot_that_could_not_be_stored_shows(watch: Watch, state: str) -> None:
    """SIGTERM does not make a failure look like a success, whatever it was."""
    assert status_of(watch.judge("gateway", state, 3, stopping=True)) == 3
    assert status_of(watch.judge("gateway", state, 1, stopping=True)) == 1


def test_having_to_be_killed_shows(watch: Watch) -> None:
    """A program that had to be killed did not finish what it was stopped for."""
    assert status_of(watch.judge("gateway", "STOPPED", -signal.SIGKILL, stopping=True)) == 1
