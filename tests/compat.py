"""Chroma's own tests, against bare Chroma and through the gateway: the same ones must pass.

`chromadb/test` in its integration mode asks whatever server it is told of. Some of it fails against bare
Chroma too, for reasons of its own (missing models, old expectations, a server it wants to start itself).
Left out are the parts that never ask a server over HTTP, or need a cluster, and the property tests, whose
dice fall differently in each run: tests/integration/test_same_answers.py throws its own.

Both Chromas run with `allow_reset: true`, and the gateway lets it pass, for this run only: the tests reset the server
between each other.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.gateway_process import ROOT, gateway_process
from tests.ports import free_port

ALL = ["test_api.py", "test_client.py", "test_chroma.py", "api", "client", "configurations"]
FAST = [
    *("api/test_collection.py", "api/test_count_api.py", "api/test_limit_offset.py", "api/test_list_databases.py"),
    *("api/test_get_database.py", "api/test_delete_database.py", "api/test_invalid_update.py"),
    *("api/test_numpy_list_inputs.py", "api/test_search_api.py", "client/test_database_tenant.py"),
]
START_TIMEOUT_S = 60


@contextmanager
def running(command: list[str], directory: Path, ready: str, **env: str) -> Iterator[None]:
    """A process with its output in `directory`/log, once `ready` answers 200."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(ready, timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chroma(binaries: Path, directory: Path) -> Iterator[int]:
    """Chroma that may be reset, in `directory`; yields its port."""
    directory.mkdir()
    port = free_port()
    config = directory / "config.yaml"
    config.write_text(
        f'port: {port}\nlisten_address: "127.0.0.1"\npersist_path: "{directory}/data"\nallow_reset: true\n'
    )
    with running(
        [str(binaries / "chroma"), "run", str(config)], directory, f"http://127.0.0.1:{port}/api/v2/heartbeat"
    ):
        yield port


def run(binaries: Path, tests: list[str], port: int, directory: Path) -> dict[str, str]:
    """Run the suite against `port`; what became of each test, by name."""
    suite = next(binaries.parent.glob("lib/python3*/site-packages/chromadb/test"))
    report = directory / f"report-{port}.xml"
    # As in Chroma's own pyproject.toml, which the wheel does not have. pytest would take this project's file else.
    (config := directory / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [str(binaries / "python"), "-m", "pytest", "-c", str(config), "-q", "--tb=no"]
    command += ["-p", "no:cacheprovider", "--timeout=120"]
    subprocess.run(
        [*command, "-W", "ignore", f"--junitxml={report}", *(str(suite / test) for test in tests)],
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "CHROMA_INTEGRATION_TEST_ONLY": "1",
            "CHROMA_SERVER_HOST": "127.0.0.1",
            "CHROMA_SERVER_HTTP_PORT": str(port),
            "ANONYMIZED_TELEMETRY": "False",
        },
        stdout=subprocess.DEVNULL,
        check=False,
    )
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # pytest wrote it
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def main() -> int:
    binaries, fast = Path(sys.argv[1]), "--fast" in sys.argv
    tests = FAST if fast else ALL
    with tempfile.TemporaryDirectory(prefix="compat") as name, ExitStack() as stack:
        directory = Path(name)
        port = stack.enter_context(chroma(binaries, directory / "bare"))
        bare = run(binaries, tests, port, directory)
        front = stack.enter_context(gateway_process(GATEWAY_ALLOW_RESET="true", GATEWAY_LOG_LEVEL="warning"))
        through = run(binaries, tests, front.start().port, directory)
    for what, found in (("bare Chroma", bare), ("the gateway", through)):
        kinds = sorted(set(found.values()))
        print(f"{what}: " + ", ".join(f"{list(found.values()).count(kind)} {kind}" for kind in kinds))
    different = [
        f"{test}: {bare.get(test)} against bare Chroma, {through.get(test)} through the gateway"
        for test in sorted(bare.keys() | through.keys())
        if bare.get(test) != through.get(test)
    ]
    if "passed" not in bare.values():
        print("no test passed with bare Chroma: the suite does not run here")
        return 1
    print("\n".join(different) or "every test ended the same way")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
