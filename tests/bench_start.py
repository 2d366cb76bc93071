"""How long a start on empty data takes, beside a bare Chroma's in the same run; see `scripts/bench-start --help`."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.gateway_process import ROOT
from tests.image import Engine
from tests.ports import free_port

BESIDE = Path(sys.executable).parent
TIMEOUT_S = 120


def time_start(command: list[str], url: str, env: dict[str, str]) -> float:
    """Seconds from the start of `command` until `url` answers 200. The process is ended afterwards."""
    # One client for all looks: a new one reads certificates, for longer than some of these starts take.
    with tempfile.TemporaryDirectory() as directory, httpx.Client(timeout=5, trust_env=False) as http:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": directory, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    if http.get(url).status_code == httpx.codes.OK:
                        return time.monotonic() - began
                except httpx.TransportError:
                    pass
                if process.poll() is not None or time.monotonic() - began > TIMEOUT_S:
                    sys.exit(f"{command[0]} did not start")
                time.sleep(0.01)
        finally:
            process.terminate()
            process.wait(30)


def gateway(root: Path) -> Callable[[], float]:
    """Of the gateway in the checkout `root`, with its own environment."""

    def start() -> float:
        port = free_port()
        env = {"PORT": str(port), "GATEWAY_CHROMA_PORT": str(free_port())}
        command = [str(root / ".venv/bin/chroma-gateway"), "serve", "--config", str(root / "supervisord.conf")]
        return time_start(command, f"http://127.0.0.1:{port}/readyz", env)

    return start


def bare() -> float:
    """Of the `chroma` script of this environment."""
    port = free_port()
    command = [str(BESIDE / "chroma"), "run", "--path", "data", "--host", "127.0.0.1", "--port", str(port)]
    return time_start(command, f"http://127.0.0.1:{port}/api/v2/heartbeat", {})


def container(image: str) -> Callable[[], float]:
    """Of the gateway in `image`, from `docker run` on, with a store on a volume."""

    def start() -> float:
        engine = Engine(image, "512m")
        engine.use_volume()
        try:
            return engine.start().until_ready()
        finally:
            engine.clean()

    return start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="of each, in turns, after one that is not counted")
    parser.add_argument("--other", type=Path, help="another checkout with an environment, timed in turns with this one")
    parser.add_argument("--image", action="append", default=[], help="an image, timed in turns with the others")
    asked = parser.parse_args()
    cases = {"chroma run": bare, "gateway": gateway(ROOT)}
    if asked.other:
        cases["gateway of --other"] = gateway(asked.other.absolute())
    cases |= {f"image {name}": container(name) for name in asked.image}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(asked.runs + 1):
        for name, start in cases.items():
            taken = start()
            if turn:
                seconds[name].append(taken)
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(each, seconds["chroma run"], strict=True)]
        print(
            f"{name:20} median {statistics.median(each):5.2f} s, min {min(each):5.2f}, max {max(each):5.2f};"
            f" ratio to chroma run: median {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
