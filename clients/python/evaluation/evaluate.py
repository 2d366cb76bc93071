"""What the recommendations are worth, on the handwritten digits of scikit-learn: `scripts/evaluate-recommendations`.

For each seed, 100 digits are labelled, 1097 are met in production, 600 are for the test. In each round a model is
trained on what is labelled, and logs the embeddings of that with a TrainingSession. A QuerySession is asked about
everything else. Of what it recommends 50 are chosen at random and get their true label, and the next round begins. The
second way is the same without `explore`. The third is 50 of everything else, at random, and asks nobody.

The server is Chroma itself, which is started here. Writes results.json and accuracy.svg, and prints the tables.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The matrices are small: threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import httpx
import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import chroma

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "evaluation"  # the same numbers make the same file
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).parent
FIRST, TEST, EACH_ROUND = 100, 600, 50
RUN = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(sys.argv)"
WAYS = ("recommended", "without explore", "random")
Indices = list[int]


class Digits:
    """The data of one seed: pixels from 0 to 1, and who has which part."""

    def __init__(self, seed: int) -> None:
        self.pixels, self.digits = load_digits(return_X_y=True)
        self.pixels = self.pixels / 16
        order = np.random.default_rng(seed).permutation(len(self.pixels)).tolist()
        self.test, self.first, self.met = order[:TEST], order[TEST : TEST + FIRST], order[TEST + FIRST :]


class Model:
    """One hidden layer of 64; its activations are the embeddings."""

    def __init__(self, data: Digits, labelled: Indices, seed: int) -> None:
        self.data, self.labelled = data, labelled
        self._network = MLPClassifier((64,), learning_rate_init=0.01, max_iter=500, random_state=seed)
        self._network.fit(data.pixels[labelled], data.digits[labelled])

    def accuracy(self) -> float:
        return float(self._network.score(self.data.pixels[self.data.test], self.data.digits[self.data.test]))

    def embeddings(self, which: Indices) -> Any:
        return np.maximum(self.data.pixels[which] @ self._network.coefs_[0] + self._network.intercepts_[0], 0)

    def predicted(self, which: Indices) -> list[int]:
        return [int(each) for each in self._network.predict(self.data.pixels[which])]

    def ask(self, url: str, name: str, which: Indices, explore: float = 0.2) -> list[chroma.Result]:
        """Log what the model was trained on, then what it meets; the results."""
        embedding_set = {"model": name, "layer": "hidden"}
        labels = [{"label": int(each)} for each in self.data.digits[self.labelled]]
        with chroma.TrainingSession(embedding_set=embedding_set, chroma_url=url) as training:
            training.log(
                input_uri=[f"digits/{each}" for each in self.labelled],
                embedding=self.embeddings(self.labelled),
                inferences=labels,
            )
            training.save()
        with chroma.QuerySession(embedding_set=embedding_set, chroma_url=url, patience_s=60, explore=explore) as query:
            return query.log(
                input_uri=[f"digits/{each}" for each in which],
                embedding=self.embeddings(which),
                inferences=[{"label": each} for each in self.predicted(which)],
            )


def choose(numbers: np.random.Generator, wanted: Sequence[int], rest: Sequence[int], size: int) -> Indices:
    """`size` of `wanted` at random; where these are too few, others."""
    first = numbers.permutation(wanted)[:size].tolist() if wanted else []
    others = [each for each in rest if each not in first]
    return [int(each) for each in (*first, *numbers.permutation(others)[: size - len(first)])]


def rounds(url: str, seed: int, number: int) -> dict[str, Any]:
    """Accuracies after each round, by each way; and the share of what was left that was recommended."""
    data = Digits(seed)
    found: dict[str, Any] = {"share": [], **{way: [] for way in WAYS}}
    for way in WAYS:
        numbers = np.random.default_rng(seed + 1000)
        labelled, left = list(data.first), list(data.met)
        for each in range(number + 1):
            model = Model(data, labelled, seed)
            found[way].append(model.accuracy())
            if each == number:
                break
            wanted: Indices = []
            if way != "random":
                explore = 0.2 if way == "recommended" else 0.0
                results = model.ask(url, f"{way}-{seed}-{each}", left, explore)
                wanted = [index for index, result in zip(left, results, strict=True) if result.training_recommended]
                if way == "recommended":
                    found["share"].append(len(wanted) / len(left))
            chosen = choose(numbers, wanted, left, EACH_ROUND)
            labelled = labelled + chosen
            left = [index for index in left if index not in set(chosen)]
    return found


def by_tag(url: str, seed: int, size: int) -> dict[str, Any]:
    """Accuracy after one round with `size` more, of one tag alone; how many have it, and how many of them are wrong."""
    data = Digits(seed)
    model = Model(data, list(data.first), seed)
    results = model.ask(url, f"tags-{seed}", data.met)
    wrong = dict(zip(data.met, np.array(model.predicted(data.met)) != data.digits[data.met], strict=True))
    groups: dict[str, Indices] = {"everything": list(data.met), "none": []}
    for index, result in zip(data.met, results, strict=True):
        for name in [each.tag.value for each in result.recommendations] or ["none"]:
            groups.setdefault(name, []).append(index)
    found = {}
    for name, members in groups.items():
        accuracies = []
        for repeat in range(3):
            numbers = np.random.default_rng([seed, repeat])
            chosen = numbers.permutation(members)[:size].tolist()
            accuracies.append(Model(data, data.first + chosen, seed).accuracy())
        found[name] = {
            "members": len(members),
            "wrong": float(np.mean([wrong[each] for each in members])) if members else 0.0,
            "used": min(size, len(members)),
            "accuracy": float(np.mean(accuracies)),
        }
    return found


@contextmanager
def running_chroma() -> Iterator[str]:
    """Chroma in a directory of its own; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", RUN, "run", "--path", directory, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    httpx.get(f"{url}/api/v2/heartbeat").raise_for_status()
                    break
                except httpx.TransportError:
                    assert process.poll() is None, "Chroma ended"
                    time.sleep(0.1)
            yield url
        finally:
            process.kill()
            process.wait()


def report(found: dict[str, Any]) -> None:
    """Print the tables and draw the plot."""
    accuracy = {way: 100 * np.array([each[way] for each in found["rounds"]]) for way in WAYS}
    sizes = [FIRST + EACH_ROUND * each for each in range(accuracy["random"].shape[1])]
    print("| labelled | recommended | without `explore` | random | recommended, beside random | better in |")
    print("| --- | --- | --- | --- | --- | --- |")
    for column, size in enumerate(sizes):
        cells = [
            f"{values[:, column].mean():.1f} ± {values[:, column].std(ddof=1):.1f}" for values in accuracy.values()
        ]
        by = accuracy["recommended"][:, column] - accuracy["random"][:, column]
        beside = f"{by.mean():+.1f} ± {by.std(ddof=1):.1f} | {(by > 0).sum()} of {len(by)}"
        print(f"| {size} | {' | '.join(cells)} | {beside} |")
    print("\n| tag | inputs | of them the model is wrong on | chosen | accuracy with them |")
    print("| --- | --- | --- | --- | --- |")
    for name in sorted({name for each in found["tags"] for name in each}):
        seen = [each[name] for each in found["tags"] if name in each]
        members, wrong, used, reached = (
            np.mean([each[key] for each in seen]) for key in ("members", "wrong", "used", "accuracy")
        )
        print(f"| {name} | {members:.0f} | {wrong:.1%} | {used:.0f} | {100 * reached:.1f} |")
    shares = np.array([each["share"] for each in found["rounds"]]).mean(axis=0)
    print("\nshare recommended in each round:", [f"{each:.0%}" for each in shares])
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for way, values in accuracy.items():
        axes.errorbar(sizes, values.mean(axis=0), values.std(axis=0, ddof=1), capsize=3, label=way)
    axes.set(
        xlabel="labelled digits", ylabel="accuracy on the test, %", title="mean and standard deviation of the seeds"
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(HERE / "accuracy.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--report", action="store_true", help="of results.json, without computing anything")
    options = parser.parse_args()
    if options.report:
        report(json.loads((HERE / "results.json").read_text()))
        return
    found: dict[str, Any] = {"rounds": [], "tags": []}
    with running_chroma() as url:
        for seed in range(options.seeds):
            found["rounds"].append(rounds(url, seed, options.rounds))
            found["tags"].append(by_tag(url, seed, 2 * EACH_ROUND))
            print(f"seed {seed} is done", file=sys.stderr, flush=True)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    report(found)


if __name__ == "__main__":
    main()
