"""A swap is done completely or not at all, wherever a crash interrupts it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import is_chromas
from gateway.errors import ConfigError

SNAPSHOT = "20261120T210455Z-3f9a1c"
A, B, C = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "abc")
State = dict[str, str]
OLD: State = {"chroma.sqlite3": "old", "chroma.sqlite3-wal": "old", f"{A}/header.bin": "old", f"{B}/header.bin": "old"}
NEW: State = {"chroma.sqlite3": "new", f"{B}/header.bin": "new", f"{C}/header.bin": "new"}
FOREIGN: State = {"lost+found/inode": "theirs", "notes.txt": "theirs", ".gateway/home.json": "{}"}


def write(directory: Path, state: State) -> None:
    for name, text in state.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def live(directory: DataDirectory) -> State:
    """Chroma's files, as Chroma would find them."""
    names = [name for name in os.listdir(directory.path) if is_chromas(name)]
    files = [
        path
        for name in names
        for path in (directory.path / name, *(directory.path / name).rglob("*"))
        if path.is_file()
    ]
    return {str(path.relative_to(directory.path)): path.read_text() for path in files}


def left_over(directory: DataDirectory) -> list[str]:
    """Entries that a swap left behind."""
    return sorted(set(os.listdir(directory.path / ".gateway")) - {"home.json", "incoming", "settled.json"})


def made(path: Path, old: State = OLD) -> DataDirectory:
    """A data directory with live data and incoming data."""
    directory = DataDirectory(path)
    directory.make()
    write(path, {**old, **FOREIGN})
    write(directory.make_incoming(), NEW)
    return directory


class Crash(BaseException):
    """The process ends here."""


class Power:
    """Raises Crash before step `last` and ever after. A step is a call that changes names or flushes files."""

    def __init__(self, last: int | None) -> None:
        self.steps, self._last = 0, last

    def step(self) -> None:
        if self._last is not None and self.steps >= self._last:
            raise Crash
        self.steps += 1


@contextmanager
def power(last: int | None = None) -> Iterator[Power]:
    """Run the block up to step `last`, where it ends."""
    supply = Power(last)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync"):
            patched.setattr(os, name, _counted(supply, getattr(os, name)))
        try:
            yield supply
        except Crash:
            pass


def _counted(supply: Power, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        supply.step()
        return function(*args, **kwargs)

    return counted


def after_crash(path: Path) -> DataDirectory:
    """The directory as the next process sees it."""
    return DataDirectory(path)


def require_settled_or_on_trial(path: Path, what: str) -> DataDirectory:
    """After `recover`: the old data and no swap, or the new data. A second `recover` changes nothing."""
    for _ in range(2):
        directory = after_crash(path)
        directory.recover()
        state = live(directory)
        assert state in (OLD, NEW), f"{what}: a mixture: {state}"
        if state == OLD:
            assert not directory.is_swapping(), what
        assert directory.is_swapping() == (directory.on_trial is not None), what
        assert directory.on_trial in (None, SNAPSHOT), what
        assert "rejected" not in left_over(directory), what
        for name, text in FOREIGN.items():
            assert (path / name).read_text() == text, what
    return directory


def swap_in(directory: DataDirectory) -> None:
    directory.swap_in(SNAPSHOT)


def steps_of(path: Path, prepare: Callable[[Path], DataDirectory], act: Callable[[DataDirectory], None]) -> int:
    directory = prepare(path)
    with power() as supply:
        act(directory)
    shutil.rmtree(path)
    return supply.steps


def on_trial(path: Path) -> DataDirectory:
    directory = made(path)
    directory.swap_in(SNAPSHOT)
    return directory


# ---------------------------------------------------------------------- exchanging, undisturbed


def test_a_settled_swap_leaves_only_the_new_data(tmp_path: Path) -> None:
    """Nothing of the old data is left, and foreign files are untouched."""
    directory = made(tmp_path)
    directory.swap_in(SNAPSHOT)
    assert directory.on_trial == SNAPSHOT
    assert live(directory) == NEW
    assert directory.settled is None
    directory.settle()
    assert (directory.on_trial, directory.is_swapping(), directory.settled) == (None, False, SNAPSHOT)
    assert live(directory) == NEW
    assert left_over(directory) == []
    assert {name: (tmp_path / name).read_text() for name in FOREIGN} == FOREIGN


def test_a_swap_that_is_rolled_back_leaves_the_old_data(tmp_path: Path) -> None:
    """Files that Chroma wrote beside the new data go with it."""
    directory = on_trial(tmp_path)
    write(tmp_path, {"chroma.sqlite3-wal": "trial", "chroma.sqlite3-shm": "trial", f"{A}/header.bin": "trial"})
    directory.roll_back()
    assert live(directory) == OLD
    assert (directory.is_swapping(), directory.settled) == (False, None)
    assert left_over(directory) == []
    assert {name: (tmp_path / name).read_text() for name in FOREIGN} == FOREIGN


def test_a_swap_with_an_empty_directory_can_be_settled_and_rolled_back(tmp_path: Path) -> None:
    """As at a first start: rolling back leaves nothing."""
    directory = made(tmp_path / "kept", old={})
    directory.swap_in(SNAPSHOT)
    directory.settle()
    assert live(directory) == NEW
    directory = made(tmp_path / "not", old={})
    directory.swap_in(SNAPSHOT)
    directory.roll_back()
    assert live(directory) == {}
    assert directory.is_empty()


def test_a_second_swap_does_not_bring_back_data_of_the_first(tmp_path: Path) -> None:
    """Data that were kept or rejected before do not come back."""
    directory = on_trial(tmp_path)
    directory.roll_back()
    write(directory.make_incoming(), NEW)
    directory.swap_in(SNAPSHOT)
    directory.roll_back()
    assert live(directory) == OLD


def test_rolling_back_without_a_swap_changes_nothing(tmp_path: Path) -> None:
    """The live data stay."""
    directory = made(tmp_path)
    directory.roll_back()
    directory.recover()
    assert live(directory) == OLD


# ---------------------------------------------------------------------- the power fails


def test_a_crash_at_any_step_of_a_swap_leaves_one_whole_state(tmp_path: Path) -> None:
    """The old data, or the new data on trial, which can be settled or rolled back."""
    path = tmp_path / "data"
    steps, seen = steps_of(path, made, swap_in), set()
    for last in range(steps + 1):
        for end in ("settle", "roll_back"):
            directory = made(path)
            with power(last):
                swap_in(directory)
            directory = require_settled_or_on_trial(path, f"step {last} of {steps}")
            began, state = directory.is_swapping(), live(directory)
            seen.add("new" if began else "old")
            assert state == (NEW if began else OLD)
            if began:
                getattr(directory, end)()
                assert live(directory) == (NEW if end == "settle" else OLD)
                assert left_over(directory) == []
            shutil.rmtree(path)
    assert seen == {"old", "new"}


def test_a_crash_at_any_step_of_rolling_back_leads_to_the_old_data(tmp_path: Path) -> None:
    """Before the first step is stored, the new data are still on trial."""
    path = tmp_path / "data"
    steps, seen = steps_of(path, on_trial, DataDirectory.roll_back), set()
    for last in range(steps + 1):
        directory = on_trial(path)
        with power(last):
            directory.roll_back()
        directory = require_settled_or_on_trial(path, f"step {last} of {steps}")
        seen.add("new" if directory.on_trial else "old")
        assert live(directory) == (NEW if directory.on_trial else OLD)
        shutil.rmtree(path)
    assert seen == {"old", "new"}


def test_a_crash_at_any_step_of_settling_keeps_the_new_data(tmp_path: Path) -> None:
    """The swap is settled, which is told from then on, or still on trial with the old data whole."""
    path, seen = tmp_path / "data", set()
    for last in range(steps_of(path, on_trial, DataDirectory.settle) + 1):
        directory = on_trial(path)
        with power(last):
            directory.settle()
        directory = require_settled_or_on_trial(path, f"step {last}")
        seen.add(directory.on_trial)
        assert {directory.on_trial, directory.settled} == {None, SNAPSHOT}
        assert live(directory) == NEW
        if directory.on_trial:
            directory.roll_back()
            assert live(directory) == OLD
        assert left_over(directory) == []
        shutil.rmtree(path)
    assert seen == {None, SNAPSHOT}


@pytest.mark.parametrize("act", [swap_in, DataDirectory.roll_back], ids=["swap_in", "roll_back"])
@pytest.mark.parametrize("stride", [7, pytest.param(2, marks=pytest.mark.soak)])
def test_a_second_crash_during_recovery_is_recovered_from(
    tmp_path: Path, act: Callable[[DataDirectory], None], stride: int
) -> None:
    """At every step of the swap, and then at the steps of finishing it, of which `stride` counts one."""
    path, prepare = tmp_path / "data", (made if act is swap_in else on_trial)
    for first in range(0, steps_of(path, prepare, act) + 1):
        second, finished = first % stride, False
        while not finished:
            directory = prepare(path)
            with power(first):
                act(directory)
            finished = True
            with power(second) as supply:
                after_crash(path).recover()
            finished = supply.steps < second
            require_settled_or_on_trial(path, f"steps {first} and {second}")
            shutil.rmtree(path)
            second += stride


def test_a_swap_that_fails_at_any_step_can_be_rolled_back(tmp_path: Path) -> None:
    """Without `recover` before it: the old data are whole again."""
    path = tmp_path / "data"
    for last in range(steps_of(path, made, swap_in) + 1):
        directory = made(path)
        with power(last):
            swap_in(directory)
        directory.roll_back()
        assert live(directory) == OLD, f"step {last}"
        directory = require_settled_or_on_trial(path, f"step {last}")
        assert live(directory) == OLD
        shutil.rmtree(path)


def test_an_interrupted_roll_back_can_be_repeated(tmp_path: Path) -> None:
    """Without `recover` before it: it leads to the old data."""
    path = tmp_path / "data"
    for last in range(steps_of(path, on_trial, DataDirectory.roll_back) + 1):
        directory = on_trial(path)
        with power(last):
            directory.roll_back()
        directory.roll_back()
        assert live(directory) == OLD, f"step {last}"
        shutil.rmtree(path)


def test_a_half_written_phase_is_ignored(tmp_path: Path) -> None:
    """It is in a temporary file."""
    directory = made(tmp_path)
    (tmp_path / ".gateway/swap.new").write_text('{"phase": "o')
    directory = require_settled_or_on_trial(tmp_path, "half written")
    assert live(directory) == OLD


# ---------------------------------------------------------------------- on trial


def test_data_on_trial_get_one_start(tmp_path: Path) -> None:
    """A second start means that Chroma died of the data. Another process knows it too."""
    on_trial(tmp_path)
    assert after_crash(tmp_path).may_run_trial()
    directory = after_crash(tmp_path)
    directory.recover()
    assert directory.on_trial == SNAPSHOT
    assert not directory.may_run_trial()
    directory.roll_back()
    assert live(directory) == OLD
    assert directory.may_run_trial()


def test_without_a_trial_chroma_may_always_start(tmp_path: Path) -> None:
    """Any number of times, also after the swap is settled."""
    directory = made(tmp_path)
    assert directory.may_run_trial()
    assert directory.may_run_trial()
    directory.swap_in(SNAPSHOT)
    assert directory.may_run_trial()
    directory.settle()
    assert directory.may_run_trial()


def test_a_recorded_start_survives_a_crash(tmp_path: Path) -> None:
    """At every step the start is recorded, or Chroma did not start."""
    path = tmp_path / "data"
    for last in range(steps_of(path, on_trial, DataDirectory.may_run_trial) + 1):
        directory, started = on_trial(path), False
        with power(last):
            started = directory.may_run_trial()
        directory = require_settled_or_on_trial(path, f"step {last}")
        assert live(directory) == NEW
        if started:
            assert not directory.may_run_trial()
        shutil.rmtree(path)


# ---------------------------------------------------------------------- scratch directories and notes


def test_private_directories_are_empty_and_on_the_same_file_system(tmp_path: Path) -> None:
    """They are made empty with mode 0700, and files can be renamed out of them."""
    directory = DataDirectory(tmp_path)
    directory.make()
    write(directory.make_incoming(), {"left": "over"})
    path = directory.make_incoming()
    assert list(path.iterdir()) == []
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_dev == tmp_path.stat().st_dev
    write(directory.scratch, {"room/left": "over"})
    directory.drop_leftovers()
    assert os.listdir(tmp_path / ".gateway") == []
    assert directory.is_empty()


def test_a_path_that_cannot_be_a_directory_stops_the_start(tmp_path: Path) -> None:
    """The message names the path and the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        DataDirectory(tmp_path / "file/data").make()
    assert str(tmp_path / "file/data") in caught.value.message
    assert "GATEWAY_DATA_DIR" in (caught.value.hint or "")


# ---------------------------------------------------------------------- who may use it


CLAIMS = {"gateway": DataDirectory.claim_as_gateway, "chroma": DataDirectory.claim_as_chroma}


@pytest.mark.parametrize("role", CLAIMS)
def test_a_second_claim_is_refused_until_the_first_is_released(tmp_path: Path, role: str) -> None:
    """The message names the directory and what to do. The other role is free."""
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.make()
    CLAIMS[role](first)
    with pytest.raises(ConfigError, match=f"uses the data directory {tmp_path}") as caught:
        CLAIMS[role](second)
    assert "GATEWAY_DATA_DIR" in (caught.value.hint or "")
    (other,) = CLAIMS.keys() - {role}
    CLAIMS[other](second)
    first.release()
    CLAIMS[role](second)
    second.release()


BECOME_ANOTHER = """
import os, sys
from pathlib import Path
from gateway.chroma.directory import DataDirectory
getattr(DataDirectory(Path(sys.argv[1])), "claim_as_" + sys.argv[2])()
os.execv(sys.executable, [sys.executable, "-c", "print('another', flush=True); input()"])
"""


@pytest.mark.parametrize(("role", "kept"), [("chroma", True), ("gateway", False)])
def test_chromas_claim_outlives_an_exec_and_the_gateways_does_not(tmp_path: Path, role: str, kept: bool) -> None:
    """`chroma run` holds it in place of the program that claimed it, however it ends; children of a gateway do not."""
    directory = DataDirectory(tmp_path)
    directory.make()
    command = [sys.executable, "-c", BECOME_ANOTHER, str(tmp_path), role]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"another\n"
        if kept:
            with pytest.raises(ConfigError):
                CLAIMS[role](directory)
        else:
            CLAIMS[role](directory)
            directory.release()
        process.kill()
        process.wait()
        CLAIMS[role](directory)
        directory.release()


@pytest.mark.parametrize("name", ["chroma.sqlite3", A])
def test_a_link_in_place_of_the_data_is_refused(tmp_path: Path, name: str) -> None:
    """What SQLite writes lies beside the file that the link leads to: snapshots would lack it. The whole may be one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data").symlink_to(elsewhere)
    DataDirectory(tmp_path / "data").make()
    (tmp_path / "data" / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        DataDirectory(tmp_path / "data").make()
