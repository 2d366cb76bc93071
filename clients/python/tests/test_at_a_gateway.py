"""The client at a real gateway, and at Chroma itself. All tests share a gateway; each has its own embedding set."""

import base64
import contextlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bare_chroma import bare_chroma
from tests.gateway_process import Gateway, gateway_process
from tests.keys import Keys

import chroma
from chroma import (
    EmbeddingSet,
    InvalidRecord,
    MixedEmbeddingSets,
    QuerySession,
    Tag,
    TrainingSession,
    Unavailable,
    calls,
    collection,
    neighbours,
)
from chroma.__main__ import main

PYTHONPATH = str(Path(chroma.__file__).parents[1])
DIMENSION = 16


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    keys.add("all", "writer")
    keys.add("reader", "reader")
    keys.add("small", "writer", collections=["small-*"], limits={"records": 7})
    return keys


@pytest.fixture(scope="module")
def gateway(keys: Keys) -> Iterator[Gateway]:
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1", GATEWAY_KEYS_FILE=str(keys.path)) as built:
        yield built.start()


@pytest.fixture(autouse=True)
def directory(gateway: Gateway, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a `chroma.json` for the gateway."""
    monkeypatch.chdir(tmp_path)
    settings = {"chroma_url": gateway.url, "api_key": keys.tokens["all"], "application_id": "tests"}
    (tmp_path / "chroma.json").write_text(json.dumps(settings))
    yield tmp_path
    calls._close()


@pytest.fixture
def embedding_set() -> dict[str, Any]:
    return {"model": "m", "model_version": str(uuid.uuid4()), "layer": "l"}


def vectors(number: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(number, DIMENSION)).astype(np.float32)


def uris(number: int) -> list[str]:
    return [f"/images/{each}.png" for each in range(number)]


def stored(
    gateway: Gateway, keys: Keys, embedding_set: dict[str, Any], application_id: str = "tests"
) -> dict[str, tuple[str, dict[str, Any], list[float]]]:
    """Everything of the set's collection by its id, as Chroma's own client gives it: URI, metadata, embedding."""
    client = gateway.client(headers=keys.bearer("all"))
    collection = client.get_collection(f"{application_id}-{EmbeddingSet(embedding_set).id}", embedding_function=None)
    found: Any = collection.get(include=["uris", "metadatas", "embeddings"])
    embeddings = np.asarray(found["embeddings"], np.float32).tolist()
    return {
        each: (uri, metadata, embedding)
        for each, uri, metadata, embedding in zip(
            found["ids"], found["uris"], found["metadatas"], embeddings, strict=True
        )
    }


def uris_of(found: dict[str, tuple[str, dict[str, Any], list[float]]]) -> list[str]:
    return sorted(uri for uri, _, _ in found.values())


def train(embedding_set: dict[str, Any], number: int, seed: int = 0, **inferences: Any) -> Any:
    embeddings = vectors(number, seed)
    with TrainingSession(embedding_set=embedding_set) as session:
        session.log(input_uri=uris(number), embedding=embeddings, inferences=[inferences] * number)
        session.save()
    return embeddings


# ---------------------------------------------------------------------- logging


def test_a_training_record_has_everything(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """`chroma.log` stores it at once, and the set's raw strings with the collection."""
    inferences = {"label": "cat", "scores": [0.5, 0.25]}
    answer = chroma.log(
        input_uri="/images/123.png",
        embedding=vectors(1)[0],
        inferences=inferences,
        training_mode=True,
        embedding_set=embedding_set,
    )
    assert answer is None
    [(uri, metadata, embedding)] = stored(gateway, keys, embedding_set).values()
    assert uri == "/images/123.png"
    # For cosine distances Chroma scales embeddings to length 1, and back.
    assert embedding == pytest.approx(vectors(1)[0].tolist(), rel=1e-6)
    assert metadata.pop("logged_at_us") > 1e15
    assert json.loads(metadata.pop("inferences")) == inferences
    assert metadata == {"mode": "training", "label": "cat"}
    collection = gateway.client(headers=keys.bearer("all")).get_collection(
        f"tests-{EmbeddingSet(embedding_set).id}", embedding_function=None
    )
    assert json.loads(collection.metadata["embedding_set"]) == embedding_set
    assert collection.metadata["embedding_set_id"] == EmbeddingSet(embedding_set).id


def test_a_mode_must_be_said(embedding_set: dict[str, Any]) -> None:
    """Nothing is taken for training or for production by default."""
    with pytest.raises(TypeError, match="training_mode"):
        chroma.log(input_uri="a", embedding=[1.0], embedding_set=embedding_set)  # type: ignore[call-overload]
    with pytest.raises(chroma.ConfigurationError, match="True or False, not 'no'"):
        chroma.log(input_uri="a", embedding=[1.0], embedding_set=embedding_set, training_mode="no")  # type: ignore[call-overload]


def test_training_and_production_are_kept_apart(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """The same input in both modes is two records, and only those of training are neighbours."""
    train(embedding_set, 1)
    for _ in range(2):
        chroma.log(input_uri=uris(1)[0], embedding=vectors(1)[0], training_mode=False, embedding_set=embedding_set)
    metadatas = [metadata for _, metadata, _ in stored(gateway, keys, embedding_set).values()]
    assert sorted(each["mode"] for each in metadatas) == ["production", "training"]
    [production] = [each for each in metadatas if each["mode"] == "production"]
    assert production["recommendations"] == "cold_start"
    assert production["training_recommended"] is True


def test_a_session_inherits_what_does_not_change(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """A call overrides it for itself."""
    with TrainingSession(embedding_set=embedding_set, input_uri="/video.mp4", inferences={"label": "cat"}) as session:
        session.log(embedding=vectors(3)[0])
        session.log(embedding=vectors(3)[1], inferences={"label": "dog"})
        session.log(embedding=vectors(3)[2], input_uri="/other.mp4")
        session.save()
    logged = sorted((uri, each["label"]) for uri, each, _ in stored(gateway, keys, embedding_set).values())
    assert logged == [("/other.mp4", "cat"), ("/video.mp4", "cat"), ("/video.mp4", "dog")]


def test_nothing_is_stored_before_save(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """Not even the collection."""
    with TrainingSession(embedding_set=embedding_set) as session:
        session.log(input_uri=uris(3), embedding=vectors(3))
        names = [each.name for each in gateway.client(headers=keys.bearer("all")).list_collections()]
        assert f"tests-{session.embedding_set_id}" not in names
        saved = session.save()
        assert (saved.records, saved.written, saved.stored) == (3, 3, True)
        assert session.save().records == 0
        session.log(input_uri="later", embedding=vectors(4)[3])
        assert session.save().written == 1
    assert len(stored(gateway, keys, embedding_set)) == 4


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"embedding": [float("nan")] * DIMENSION}, InvalidRecord),
        ({"embedding": [1.0, 2.0]}, InvalidRecord),
        ({"embedding": [1.0] * DIMENSION, "embedding_set": {"model": "other"}}, MixedEmbeddingSets),
    ],
)
def test_a_wrong_call_keeps_and_sends_nothing(
    embedding_set: dict[str, Any], gateway: Gateway, keys: Keys, wrong: dict[str, Any], error: type[Exception]
) -> None:
    """What was logged before and after it is stored."""
    with TrainingSession(embedding_set=embedding_set) as session:
        session.log(input_uri="before", embedding=vectors(2)[0])
        with pytest.raises(error):
            session.log(input_uri="wrong", **wrong)
        session.log(input_uri="after", embedding=vectors(2)[1])
        session.save()
    assert uris_of(stored(gateway, keys, embedding_set)) == ["after", "before"]


def test_the_dimension_of_the_collection_holds(embedding_set: dict[str, Any], gateway: Gateway, keys: Keys) -> None:
    """For other sessions as well; a file with one wrong record is not stored in part."""
    train(embedding_set, 2)
    before = stored(gateway, keys, embedding_set)
    session = TrainingSession(embedding_set=embedding_set)
    session.log(input_uri="a", embedding=[1.0, 2.0])
    with pytest.raises(InvalidRecord, match="2 dimensions, and the others of its set have 16"):
        session.save()
    with pytest.warns(UserWarning, match="did not save is lost"):
        session.close()
    with QuerySession(embedding_set=embedding_set) as query, pytest.raises(InvalidRecord):
        query.log(input_uri="a", embedding=[1.0, 2.0])
    assert stored(gateway, keys, embedding_set) == before


# ---------------------------------------------------------------------- buffer files


def buffer_file(directory: Path, embedding_set: dict[str, Any], number: int) -> Path:
    with TrainingSession(embedding_set=embedding_set) as session:
        path = session.bufferlocal(file=directory / "chroma-$model-$layer-$timestamp.jsonl")
        for uri, embedding in zip(uris(number), vectors(number), strict=True):
            session.log(input_uri=uri, embedding=embedding, inferences={"label": uri[-5]})
    return path


def command(*arguments: str) -> Any:
    """Run `python3 -m chroma` in this process; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        assert main(list(arguments)) == 0
    return json.loads(printed.getvalue())


def test_a_file_is_removed_when_everything_is_stored(
    directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]
) -> None:
    """`save` also stores what an earlier process left in the file."""
    path = buffer_file(directory, embedding_set, 5)
    with TrainingSession(embedding_set=embedding_set) as session:
        session.bufferlocal(path)
        session.log(input_uri="one more", embedding=vectors(6)[5])
        assert session.save().records == 6
    assert not path.exists()
    assert len(stored(gateway, keys, embedding_set)) == 6


def test_the_same_file_twice_changes_nothing(
    directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]
) -> None:
    """By the command, which leaves the file where it is."""
    path = buffer_file(directory, embedding_set, 20)
    first = command("upload-training", str(path))
    assert first == {
        "embedding_set_id": EmbeddingSet(embedding_set).id,
        "records": 20,
        "written": 20,
        "already_there": 0,
        "left_out": [],
        "stored": True,
    }
    before = stored(gateway, keys, embedding_set)
    assert command("upload-training", str(path)) == {**first, "written": 0, "already_there": 20}
    assert stored(gateway, keys, embedding_set) == before
    assert path.exists()
    command("upload-training", "-remove", str(path))
    assert not path.exists()


def test_a_correction_stays(directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """A record that is logged again replaces the earlier one, also when the earlier file is uploaded once more."""
    path = buffer_file(directory, embedding_set, 3)
    command("upload-training", str(path))
    with TrainingSession(embedding_set=embedding_set) as session:
        session.log(input_uri=uris(3)[0], embedding=vectors(3)[0], inferences={"title": "corrected"})
        session.save()
    command("upload-training", str(path))
    found = stored(gateway, keys, embedding_set)
    [corrected] = [each for uri, each, _ in found.values() if uri == uris(3)[0]]
    assert corrected["inferences"] == '{"title":"corrected"}'
    assert "label" not in corrected
    assert len(found) == 3


def test_a_half_line_is_left_out_and_reported(
    directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]
) -> None:
    """A crash left it; everything else is stored."""
    path = buffer_file(directory, embedding_set, 5)
    path.write_bytes(path.read_bytes()[:-10])
    assert command("upload-training", str(path))["left_out"] == [5]
    assert len(stored(gateway, keys, embedding_set)) == 4
    with TrainingSession(embedding_set=embedding_set) as session:
        session.bufferlocal(path)
        session.log(input_uri="later", embedding=vectors(6)[5])
        with pytest.warns(UserWarning, match=r"1 lines were not whole and were left out: \[5\]"):
            assert session.save().records == 5
    assert len(stored(gateway, keys, embedding_set)) == 5


def test_a_wrong_line_sends_nothing(
    directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Mixed sets, mixed dimensions, production records and other people's files are found before."""
    path = buffer_file(directory, embedding_set, 2)
    good = path.read_text()
    other = {**json.loads(good.splitlines()[0]), "embedding_set": {"model": "other"}}
    short = {**json.loads(good.splitlines()[0]), "embedding": base64.b64encode(np.float32([1]).tobytes()).decode()}
    production = {**json.loads(good.splitlines()[0]), "mode": "production"}
    for line, expected in (
        (other, "line 3 of .*its embedding set is"),
        (short, "line 3 of .*1 dimensions, and those of the lines before 16"),
        (production, "line 3 of .*its mode is production"),
        ({"text": "not a record"}, "line 3 of .*not a record of this client"),
    ):
        path.write_text(good + json.dumps(line) + "\n")
        with warnings.catch_warnings():
            assert main(["upload-training", str(path)]) == 2
        assert re.search(expected, capsys.readouterr().err)
    names = [each.name for each in gateway.client(headers=keys.bearer("all")).list_collections()]
    assert f"tests-{EmbeddingSet(embedding_set).id}" not in names


@pytest.mark.soak
def test_a_kill_at_any_step_of_save_loses_nothing(directory: Path, gateway: Gateway, keys: Keys) -> None:
    """The file is there until everything is stored, and the next save stores what is missing."""
    script = Path(__file__).with_name("killed_at_each_step.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(directory)],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    steps = [json.loads(line) for line in ended.stdout.splitlines()]
    # A collection, three batches, the removal; and one that is not killed.
    assert len(steps) == 2 * (1 + 3 + 1) + 1
    for step in steps:
        assert step["again"] == 0
        assert set(step["ids"]) == set(stored(gateway, keys, step["set"])), step


def log_and_save(path: Path, embedding_set: dict[str, Any], name: str, number: int) -> None:
    """What one of several processes does."""
    with TrainingSession(embedding_set=embedding_set) as session:
        session.bufferlocal(path)
        for each in range(number):
            session.log(input_uri=f"{name}{each}", embedding=vectors(1, each)[0])
            if each == number // 2:
                session.save()
        session.save()


@pytest.mark.soak
def test_two_processes_log_and_save_one_file(
    directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]
) -> None:
    """Each saves and removes what the other has written too, and nothing is lost."""
    path = directory / "buffer"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=log_and_save, args=(path, embedding_set, name, 30)) for name in ("a", "b")]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
        assert each.exitcode == 0
    expected = sorted(f"{name}{each}" for name in ("a", "b") for each in range(30))
    assert uris_of(stored(gateway, keys, embedding_set)) == expected
    assert not path.exists()


# ---------------------------------------------------------------------- recommendations


def test_fewer_than_100_records_recommend_everything(embedding_set: dict[str, Any]) -> None:
    """Whatever it is, and also where there is no collection yet."""
    with QuerySession(embedding_set=embedding_set) as session:
        results = session.log(input_uri=uris(2), embedding=vectors(2))
        assert [each.recommendations[0].tag for each in results] == [Tag.COLD_START] * 2
    embeddings = train(embedding_set, 99)
    with QuerySession(embedding_set=embedding_set) as session:
        result = session.log(input_uri="a", embedding=embeddings[0])
    assert result.input_uri == "a"
    assert (result.training_recommended, result.not_useful) == (True, False)
    assert result.recommendations[0].tag is Tag.COLD_START


def test_the_statistics_are_those_of_the_distances(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """Kept with the collection, over training records alone, and brought up to date as the set grows."""
    embeddings = train(embedding_set, 120)
    with QuerySession(embedding_set=embedding_set) as session:
        session.log(input_uri=uris(300), embedding=vectors(300, 7))

    def kept() -> Any:
        client = gateway.client(headers=keys.bearer("all"))
        return client.get_collection(f"tests-{EmbeddingSet(embedding_set).id}", embedding_function=None).metadata

    def check(all_embeddings: Any) -> None:
        unit = all_embeddings / np.linalg.norm(all_embeddings, axis=1, keepdims=True)
        distances = np.sort(1 - unit @ unit.T, axis=1)[:, 1:]
        q1, q3 = np.percentile(distances[:, :10].mean(axis=1), [25, 75])
        found = kept()
        assert found["training_records"] == len(all_embeddings)
        assert found["median_nearest"] == pytest.approx(np.median(distances[:, 0]), rel=1e-3)
        assert found["mean_distance_q3"] == pytest.approx(q3, rel=1e-3)
        assert found["mean_distance_iqr"] == pytest.approx(q3 - q1, rel=1e-3)

    check(embeddings)
    before = kept()
    with TrainingSession(embedding_set=embedding_set) as session:
        more = vectors(40, 1)
        session.log(input_uri=uris(29), embedding=more[:29])
        session.save()
        assert kept() == before  # not yet a quarter more
        session.log(input_uri=uris(11), embedding=more[29:])
        session.save()
    check(np.concatenate([embeddings, more]))
    assert kept()["embedding_set"] == before["embedding_set"]


def test_each_recommendation_is_found(gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """Two groups of training records with a label each; what is recommended is stored with the production record."""
    numbers = np.random.default_rng(0)
    center = np.eye(DIMENSION)[:2]
    cats, dogs = (each + numbers.normal(scale=0.05, size=(80, DIMENSION)) for each in center)
    with TrainingSession(embedding_set=embedding_set) as session:
        session.log(input_uri=uris(80), embedding=cats, inferences=[{"label": "cat"}] * 80)
        session.log(input_uri=uris(80), embedding=dogs, inferences=[{"label": "dog"}] * 80)
        session.save()
    ordinary = center[0] + numbers.normal(scale=0.05, size=DIMENSION)
    with QuerySession(embedding_set=embedding_set, explore=0) as session:

        def tags(uri: str, embedding: Any, label: str = "cat") -> list[str]:
            result = session.log(input_uri=uri, embedding=embedding, inferences={"label": label})
            return [each.tag.value for each in result.recommendations]

        assert tags("duplicate", cats[0] + 1e-4) == ["near_duplicate"]
        assert tags("ordinary", ordinary) == []
        assert tags("outlier", np.eye(DIMENSION)[5]) == ["outlier"]
        assert tags("boundary", ordinary, "dog") == ["boundary"]
    with QuerySession(embedding_set=embedding_set, explore=1) as session:
        assert tags("explore", ordinary) == ["explore"]
    found = stored(gateway, keys, embedding_set)
    kept = {
        uri: (each["recommendations"], each["training_recommended"], each["not_useful"])
        for uri, each, _ in found.values()
        if each["mode"] == "production"
    }
    assert kept == {
        "duplicate": ("near_duplicate", False, True),
        "ordinary": ("", False, False),
        "outlier": ("outlier", True, False),
        "boundary": ("boundary", True, False),
        "explore": ("explore", True, False),
    }


def test_neighbours_are_found_among_many_production_records(
    embedding_set: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none of the nearest is a training record. The answer is the same by each of the three queries."""
    train(embedding_set, 100, label="cat")
    one = vectors(1, 9)[0]
    dog = {"label": "dog"}
    with QuerySession(embedding_set=embedding_set, explore=0) as session:
        first = session.log(input_uri="one", embedding=one, inferences=dog)
        assert Tag.BOUNDARY in [each.tag for each in first.recommendations]
        crowd = session.log(input_uri=uris(35), embedding=one + 1e-5 * vectors(35, 3), inferences=[dog] * 35)
        assert not any(each.not_useful for each in crowd)
        assert session.log(input_uri="one", embedding=one, inferences=dog) == first
        monkeypatch.setattr(neighbours, "_THEN", 31)
        assert session.log(input_uri="one", embedding=one, inferences=dog) == first


def test_should_upload_asks_and_stores_nothing(
    gateway: Gateway, keys: Keys, embedding_set: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints one recommendation; a reader's key is enough."""
    embeddings = train(embedding_set, 100, label="cat")
    before = stored(gateway, keys, embedding_set)
    set_id = EmbeddingSet(embedding_set).id

    def ask(embedding: Any, *options: str) -> Any:
        text = base64.b64encode(np.float32(embedding).tobytes()).decode()
        reader = f"-api_key={keys.tokens['reader']}"
        return command("should-upload", reader, f"-embedding_set={set_id}", *options, text)

    assert ask(embeddings[0]) == {"recommendation": "not_useful"}
    nothing = ask(vectors(1, 5)[0], "-explore=0")
    assert nothing == {"recommendation": "none"}
    explained = ask(vectors(1, 5)[0], "-explore=0", "-label=dog", "-explain")
    assert explained["recommendation"] == "training_recommended"
    assert [(each["tag"], each["score"]) for each in explained["reasons"]] == [("boundary", 1.0)]
    assert stored(gateway, keys, embedding_set) == before
    unknown = "0" * 40
    assert command("should-upload", f"-embedding_set={unknown}", "AACAPw==") == {
        "recommendation": "training_recommended"
    }
    for wrong in (
        [f"-embedding_set={set_id}", "?"],
        [f"-embedding_set={set_id}", "AAAA"],
        ["-embedding_set=1", "AACAPw=="],
    ):
        with warnings.catch_warnings():
            assert main(["should-upload", *wrong]) == 2
    assert "not base64" in capsys.readouterr().err


def test_the_commands_run_as_a_module(directory: Path, embedding_set: dict[str, Any]) -> None:
    """`python3 -m chroma`, as it is written in the documentation."""
    path = buffer_file(directory, embedding_set, 3)
    run = [sys.executable, "-W", "error", "-m", "chroma"]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([*run, "upload-training", str(path)], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["written"] == 3


# ---------------------------------------------------------------------- servers


def test_limits_of_a_key_are_kept(directory: Path, gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]) -> None:
    """Where it may write fewer records at once than the server takes, they are sent in parts, of training or not."""
    with QuerySession(embedding_set=embedding_set, api_key=keys.tokens["small"], application_id="small") as query:
        assert len(query.log(input_uri=uris(20), embedding=vectors(20))) == 20
    with TrainingSession(embedding_set=embedding_set, api_key=keys.tokens["small"], application_id="small") as session:
        session.log(input_uri=uris(40), embedding=vectors(40))
        assert session.save().written == 40
    assert len(stored(gateway, keys, embedding_set, "small")) == 60


def test_a_key_that_may_not_is_denied(keys: Keys, embedding_set: dict[str, Any], directory: Path) -> None:
    """The buffer file stays."""
    path = buffer_file(directory, embedding_set, 3)
    for key in (keys.tokens["reader"], "wrong"):
        with TrainingSession(embedding_set=embedding_set, api_key=key) as session:
            session.bufferlocal(path)
            with pytest.raises(chroma.Denied):
                session.save()
    assert path.exists()


@pytest.mark.soak
def test_many_records_of_one_call_are_sent_in_parts(
    gateway: Gateway, keys: Keys, embedding_set: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions and records, so that no body is too large; the results are in the order of the call."""
    embeddings = train(embedding_set, 100)
    with QuerySession(embedding_set=embedding_set) as session:
        # With 30 neighbours each, more than SQLite takes as variables of one statement.
        assert len(session.log(input_uri=uris(1100), embedding=vectors(1100, 6))) == 1100
        monkeypatch.setattr(collection, "BODY_BYTES", 3000)
        results = session.log(input_uri=uris(60), embedding=np.concatenate([embeddings[:30], vectors(30, 5)]))
    assert [each.input_uri for each in results] == uris(60)
    assert [each.not_useful for each in results] == [True] * 30 + [False] * 30
    assert len(stored(gateway, keys, embedding_set)) == 1260


def test_a_session_goes_on_after_its_collection_was_deleted(
    gateway: Gateway, keys: Keys, embedding_set: dict[str, Any]
) -> None:
    """Its next record makes the collection again. So does the next `save`."""
    client = gateway.client(headers=keys.bearer("all"))
    with TrainingSession(embedding_set=embedding_set) as training, QuerySession(embedding_set=embedding_set) as query:
        for number in range(2):
            query.log(input_uri=f"asked {number}", embedding=vectors(1)[0])
            training.log(input_uri=f"logged {number}", embedding=vectors(1)[0])
            client.delete_collection(f"tests-{training.embedding_set_id}")
            query.log(input_uri=f"again {number}", embedding=vectors(1)[0])
            training.save()
            assert uris_of(stored(gateway, keys, embedding_set)) == [f"again {number}", f"logged {number}"]
            client.delete_collection(f"tests-{training.embedding_set_id}")


def test_it_works_at_chroma_itself(directory: Path, embedding_set: dict[str, Any]) -> None:
    """Without a gateway nothing says that it is stored, and everything else is the same."""
    path = buffer_file(directory, embedding_set, 120)
    with bare_chroma(directory / "data") as bare:
        answer = command("upload-training", f"-chroma_url={bare.url}", str(path))
        assert (answer["written"], answer["stored"]) == (120, False)
        assert command("upload-training", f"-chroma_url={bare.url}", str(path))["already_there"] == 120
        with QuerySession(embedding_set=embedding_set, chroma_url=bare.url) as session:
            assert session.log(input_uri="a", embedding=vectors(1)[0]).not_useful


def test_a_server_that_is_away_is_waited_for(directory: Path, embedding_set: dict[str, Any]) -> None:
    """For as long as the session's patience; the file stays."""
    path = buffer_file(directory, embedding_set, 3)
    with TrainingSession(embedding_set=embedding_set, chroma_url="http://127.0.0.1:9", patience_s=0.2) as session:
        session.bufferlocal(path)
        with pytest.raises(Unavailable, match="cannot reach"):
            session.save()
    assert path.exists()


def test_the_readme_does_what_it_says(directory: Path, gateway: Gateway, keys: Keys) -> None:
    """Its blocks of Python, in their order, in one new process."""
    readme = (Path(PYTHONPATH) / "README.md").read_text()
    script = "".join(re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL))
    script = script.replace("/tmp/", f"{directory}/")
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    ended = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "written=150" in ended.stdout
    assert "outlier 1" in ended.stdout or "outlier 2" in ended.stdout or "boundary" in ended.stdout, ended.stdout
    assert len(stored(gateway, keys, {"model": "user-exp-abc", "model_version": "123", "layer": "context"})) == 152
