"""Which collections are suspected, and which quarantined, after Chroma ended while it read them."""

from pathlib import Path

import pytest

from gateway.chroma.quarantine import DIED_TWICE, Fingerprint, Quarantine
from gateway.errors import Unavailable

A, B = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
FILES: Fingerprint = {"chroma.sqlite3": [7], "s/header.bin": [1, 2, 3, 4]}
OTHER_FILES: Fingerprint = {"chroma.sqlite3": [7], "s/header.bin": [1, 2, 3, 5]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


def restarted(quarantine: Quarantine, file: Path) -> Quarantine:
    """A new gateway on what the one before left on disk, which was killed."""
    assert quarantine is not None
    return Quarantine(file)


def died_of(file: Path, *collections: str) -> Quarantine:
    """The state after two deaths, of which the second was while each was read alone."""
    quarantine = Quarantine(file)
    for _ in range(2):
        for each in collections:
            quarantine.begin_probe(each)
        quarantine.chroma_gone()
    quarantine.settle(dict.fromkeys(collections, FILES), on_trial=False)
    return quarantine


def test_what_was_being_read_is_suspected_and_nothing_else(file: Path) -> None:
    """Requests to a suspect are refused until it was read alone; then it is as any other."""
    quarantine = Quarantine(file)
    for each in (A, B):
        quarantine.begin(each)
    quarantine.answered(B)
    quarantine.chroma_gone()
    assert quarantine.suspects == {A}
    assert [quarantine.refuses(each) for each in (A, B)] == [True, False]
    with pytest.raises(Unavailable, match="read alone"):
        quarantine.require_readable(A)
    quarantine.begin_probe(A)
    quarantine.end_probe(A)
    assert not quarantine.refuses(A)
    quarantine.chroma_gone()
    assert not quarantine.suspects


def test_a_second_death_with_a_suspect_is_a_quarantine(file: Path) -> None:
    """It says why and what to do, and survives the gateway."""
    quarantine = restarted(died_of(file, A), file)
    assert quarantine.quarantined == {A: DIED_TWICE}
    with pytest.raises(Unavailable, match="quarantine") as refused:
        quarantine.require_readable(A)
    assert A in (refused.value.hint or "")


def test_a_gateway_that_was_killed_with_chroma_leaves_its_notes(file: Path) -> None:
    """As when the memory of a container is used up: the next one knows what was being read."""
    first = Quarantine(file)
    first.begin_probe(A)
    second = restarted(first, file)
    second.chroma_gone()
    second.settle({A: FILES}, on_trial=False)
    assert second.suspects == {A}
    second.begin_probe(A)
    third = restarted(second, file)
    third.chroma_gone()
    assert third.quarantined == {A: DIED_TWICE}


def test_a_clients_answer_does_not_end_the_warm_ups_note(file: Path) -> None:
    """A count may be answered where a query ends the process."""
    quarantine = Quarantine(file)
    quarantine.begin_probe(A)
    quarantine.begin(A)
    quarantine.answered(A)
    quarantine.chroma_gone()
    assert quarantine.suspects == {A}


def test_a_stop_on_purpose_blames_nothing(file: Path) -> None:
    """Also what comes between the decision and the end of the process."""
    quarantine = Quarantine(file)
    quarantine.begin(A)
    quarantine.stopped()
    quarantine.begin(B)
    quarantine.chroma_gone()
    assert not quarantine.suspects
    quarantine.settle({}, on_trial=False)
    quarantine.begin(A)
    quarantine.chroma_gone()
    assert quarantine.suspects == {A}


def test_other_files_end_a_quarantine(file: Path) -> None:
    """A repair, a restore and a deletion do; a restart alone does not."""
    quarantine = restarted(died_of(file, A, B), file)
    quarantine.settle({A: FILES, B: FILES}, on_trial=False)
    assert quarantine.quarantined.keys() == {A, B}
    quarantine.settle({A: OTHER_FILES}, on_trial=False)
    assert not restarted(quarantine, file).ids


def test_data_on_trial_is_read_and_a_roll_back_brings_the_quarantine_back(file: Path) -> None:
    """The restored files may be sound. If they are not kept, the old ones are what they were."""
    quarantine = died_of(file, A)
    quarantine.settle({A: OTHER_FILES}, on_trial=True)
    assert not quarantine.refuses(A)
    quarantine = restarted(quarantine, file)
    quarantine.settle({A: FILES}, on_trial=False)
    assert quarantine.refuses(A)


def test_an_operator_lifts_it(file: Path) -> None:
    """And it is read as any other."""
    quarantine = died_of(file, A)
    quarantine.lift(A)
    assert not quarantine.refuses(A)
    assert not restarted(quarantine, file).ids


def test_a_collection_costs_two_lines_a_run(file: Path) -> None:
    """However many requests there are; and the file begins anew with each start of Chroma."""
    quarantine = Quarantine(file)
    for _ in range(1000):
        quarantine.begin(A)
        quarantine.answered(A)
    assert len(file.read_text().splitlines()) == 2
    quarantine.settle({}, on_trial=False)
    assert file.read_text() == ""


def test_a_line_that_was_cut_off_is_ignored(file: Path) -> None:
    """So is one of a later version."""
    died_of(file, A)
    with file.open("a") as written:
        written.write(f"someday {B}\nquarantined {B} {{")
    assert Quarantine(file).quarantined.keys() == {A}


def test_without_a_disk_it_is_kept_in_memory(tmp_path: Path) -> None:
    """A full disk must not stop requests, and the loop of crashes ends all the same."""
    quarantine = died_of(tmp_path / "missing" / "quarantine", A)
    assert quarantine.refuses(A)
