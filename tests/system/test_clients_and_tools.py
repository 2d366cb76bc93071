"""Clients and tools of others on a gateway with keys: the examples of docs/clients.md, each in its own environment.

`scripts/test-clients` makes the environments and runs these tests. Without them they are skipped.
"""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.documentation import DOCS, ROOT, section
from tests.gateway_process import Gateway, gateway_process
from tests.keys import Keys

ENVIRONMENTS = ROOT / "var/clients"
SCRIPTS = ROOT / "tests/clients"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not ENVIRONMENTS.exists(), reason="scripts/test-clients makes its environments"),
]
READERS = "this key is a reader's"


class Embeddings(BaseHTTPRequestHandler):
    """What mem0 asks of OpenAI: the same vector for every text."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"object": "embedding", "index": each, "embedding": [0.1, 0.2, 0.3]} for each in range(len(texts))]
        body = {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


class Served:
    def __init__(self, gateway: Gateway, keys: Keys, env: dict[str, str]) -> None:
        self.gateway, self.keys, self._env = gateway, keys, env

    def run(
        self, who: str, command: list[str], cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a client with the key of `who`."""
        return subprocess.run(
            command,
            env=self._env | {"CHROMA_KEY": self.keys.tokens[who], "PORT": str(self.gateway.port)} | env,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def text(self, heading: str, *languages: str) -> str:
        """The example below a heading of the page, for this gateway."""
        return "".join(section(DOCS / "clients.md", heading, *languages)).replace("8000", str(self.gateway.port))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("clients")
    keys = Keys(directory / "keys.json")
    for role in ("writer", "reader"):
        keys.add(role, role)
    openai = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    threading.Thread(target=openai.serve_forever, daemon=True).start()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "ANONYMIZED_TELEMETRY": "False",
        "MEM0_TELEMETRY": "False",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{openai.server_address[1]}/v1",
    }
    with gateway_process(GATEWAY_KEYS_FILE=str(keys.path)) as built:
        yield Served(built.start(), keys, env)
    openai.shutdown()
    openai.server_close()


def python_of(environment: str) -> str:
    return str(ENVIRONMENTS / environment / "bin/python")


@pytest.mark.parametrize(
    ("environment", "heading"),
    [
        ("chromadb", "Python"),
        ("chromadb-1.0", "Python"),
        ("langchain", "LangChain"),
        ("llamaindex", "LlamaIndex"),
        ("haystack", "Haystack"),
        ("mem0", "mem0"),
    ],
)
def test_an_example_works(served: Served, environment: str, heading: str) -> None:
    """With a writer's key all of it. With a reader's up to the write, whose refusal the client shows."""
    command = [python_of(environment), "-c", served.text(heading, "python")]
    written = served.run("writer", command)
    assert written.returncode == 0, written.stderr
    assert "remember the milk" in written.stdout.splitlines()[-1]
    read = served.run("reader", command)
    # It got as far as its first line of output, which shows what the writer wrote.
    assert re.search("remember the milk|^[1-9]", read.stdout), read.stderr
    assert READERS in read.stderr.splitlines()[-1]


def test_chroma_mcp_works(served: Served) -> None:
    """It sends its key as the password of Basic authentication."""
    command = [python_of("chroma-mcp"), str(SCRIPTS / "use_chroma_mcp.py")]
    created, listed, count, modified = served.run("writer", command).stdout.splitlines()
    assert "Successfully created" in created
    assert "mcp_notes" in listed
    assert (count, "Successfully modified" in modified) == ("0", True)
    listed, count, modified = served.run("reader", command, READ_ONLY="1").stdout.splitlines()
    assert ("mcp_notes" in listed, count) == (True, "0")
    assert modified.startswith("error:")
    assert READERS in modified


def test_a_client_before_1_0_fails_as_documented(served: Served) -> None:
    """Inside itself, and against bare Chroma too."""
    command = [python_of("chromadb-0.6"), "-c", served.text("Python", "python")]
    assert "KeyError: '_type'" in served.run("writer", command).stderr


@pytest.mark.parametrize(("version", "example"), [("3", "JavaScript"), ("1", "use_js_1.mjs")])
def test_a_javascript_example_works(served: Served, version: str, example: str) -> None:
    """The same of Chroma's JavaScript client, with the options of its version."""
    directory, node = ENVIRONMENTS / f"js-{version}", shutil.which("node")
    if not directory.exists() or node is None:
        pytest.skip("it needs Node and npm")
    script = directory / "example.mjs"
    if example == "JavaScript":
        script.write_text(served.text(example, "js"))
    else:
        shutil.copy(SCRIPTS / example, script)
    written = served.run("writer", [node, script.name], directory)
    assert written.returncode == 0, written.stderr
    assert "remember the milk" in written.stdout
    read = served.run("reader", [node, script.name], directory)
    assert "ChromaForbidden" in read.stderr
