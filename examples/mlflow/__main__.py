"""An ingest as a run of MLflow, and from a run back to the index that it made.

    examples/run mlflow ingest var/course --avatar course --questions var/questions.json --size 800 --overlap 100
    examples/run mlflow list
    examples/run mlflow restore RUN_ID

A run has the splitter, the embedding function and the collection as parameters; documents, chunks, seconds and
recall@5 as metrics; each document's digest and the training's result as artifacts; and the snapshot that was taken
afterwards as the tag `snapshot`. MLFLOW_TRACKING_URI says where runs are kept: var/mlflow.db by default.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from examples.connection import ROOT, admin, client
from examples.ingest import files_of, ingest
from examples.recall import read_questions, recall
from examples.search import function_of, search
from gateway.admin import GatewayError

_EXPERIMENT = "ingests"


def ingest_run(folder: Path, avatar: str, splitting: dict[str, Any], questions: dict[str, str]) -> Run:
    """Ingest a folder as a run. If it fails, so does the run."""
    with mlflow.start_run(run_name=avatar) as run:
        mlflow.log_params(
            {"avatar": avatar, "folder": folder.name} | {f"splitter_{k}": v for k, v in splitting.items()}
        )
        since = time.monotonic()
        done = ingest(files_of(folder), avatar, {"splitting": splitting} if splitting else {}, _say)
        mlflow.log_metric("seconds", time.monotonic() - since)
        mlflow.log_dict(done, "training.json")
        collection = client().get_collection(done["collection"])
        mlflow.log_params({"collection": collection.name, "embedding": function_of(collection).name()})
        with admin() as gateway:
            used = [
                each for each in gateway.documents().all(f"{avatar}/vectorstore_data", digests=True) if each["used"]
            ]
            mlflow.log_dict({each["name"]: each["digest"] for each in used}, "documents.json")
            mlflow.log_metrics(
                {"documents": len(used), "failed": len(done["failed"]), "chunks": collection.count()},
            )
            if questions:
                result = recall(questions, lambda asked, most: _documents(collection.name, asked, most))
                mlflow.log_metric("recall_at_5", result.share)
                mlflow.log_dict({"missed": result.missed}, "missed.json")
            snapshot = gateway.snapshots.take(f"mlflow {run.info.run_id}")
        mlflow.set_tag("snapshot", snapshot["id"])
    return mlflow.get_run(run.info.run_id)


def restore(run_id: str) -> tuple[int, str | None]:
    """Serve the snapshot of a run. Return its collection's chunks, and the moment that undoes the restore, if any.

    Raises SystemExit if the run has no snapshot, or if the collection is not what the run made.
    """
    run = mlflow.get_run(run_id)
    if (snapshot := run.data.tags.get("snapshot")) is None:
        raise SystemExit(f"run {run_id} has no snapshot: it did not end well")
    with admin() as gateway:
        restored = gateway.snapshots.restore(snapshot, on_job=lambda job: _say(0.0, job["phase"] or "restore"))
    chunks = client().get_collection(run.data.params["collection"]).count()
    if chunks != int(run.data.metrics["chunks"]):
        raise SystemExit(f"{chunks} chunks were restored, the run made {run.data.metrics['chunks']:.0f}")
    return chunks, restored["return_to"]


def _open_experiment() -> None:
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{ROOT}/var/mlflow.db")
        if mlflow.get_experiment_by_name(_EXPERIMENT) is None:  # by default artifacts go to the current directory
            mlflow.create_experiment(_EXPERIMENT, artifact_location=(ROOT / "var/mlflow-artifacts").as_uri())
    mlflow.set_experiment(_EXPERIMENT)


def _documents(collection: str, question: str, most: int) -> list[str]:
    return [passage.document for passage in search(collection, question, most)]


def _say(_share: float, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{what[:70]:<70}", end="", file=sys.stderr)


def _show(run: Run) -> None:
    metrics = run.data.metrics
    print(
        f"{run.info.run_id}  {run.info.status}  {run.data.params.get('collection', '-')}"
        + "".join(f"  {name} {metrics[name]:g}" for name in sorted(metrics))
        + f"  snapshot {run.data.tags.get('snapshot', '-')}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples/run mlflow", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("ingest", help="ingest a folder as a run")
    new.add_argument("folder", type=Path)
    new.add_argument("--avatar", required=True)
    new.add_argument("--questions", type=Path, help="a JSON object: each question with the document that answers it")
    new.add_argument("--size", type=int, help="of a chunk; by default as much as the embedding function reads")
    new.add_argument("--overlap", type=int, default=0)
    new.add_argument("--unit", choices=("characters", "tokens"), default="characters")
    commands.add_parser("list", help="list the runs, newest first")
    commands.add_parser("restore", help="serve the index of a run").add_argument("run_id")
    return parser.parse_args()


def main() -> None:
    asked = _parse()
    _open_experiment()
    try:
        if asked.command == "ingest":
            splitting = {"size": asked.size, "overlap": asked.overlap, "unit": asked.unit} if asked.size else {}
            questions = read_questions(asked.questions) if asked.questions else {}
            _show(ingest_run(asked.folder, asked.avatar, splitting, questions))
        elif asked.command == "list":
            for run in mlflow.search_runs(experiment_names=[_EXPERIMENT], output_format="list"):
                _show(run)
        else:
            chunks, return_to = restore(asked.run_id)
            print(f"{chunks} chunks are served as the run made them")
            if return_to:
                print(f"undo it: chroma-gateway restore --at {return_to}")
    except GatewayError as error:
        sys.exit(str(error))


main()
