"""The rules about who may import and know what. `[tool.importlinter]` in pyproject.toml has the layers."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gateway"

PURE_MODULES = [
    *("gateway.proxy.responses", "gateway.chroma.routes", "gateway.proxy.framing", "gateway.proxy.headers"),
    *("gateway.proxy.limits", "gateway.proxy.counters", "gateway.snapshot.model", "gateway.snapshot.plan"),
    *(
        "gateway.snapshot.history",
        "gateway.snapshot.unsaved_writes",
        "gateway.snapshot.retention",
    ),
    *("gateway.snapshot.schedule", "gateway.lease.state", "gateway.journal.usage", "gateway.journal.volume"),
    "gateway.observability.advice",
    *(
        "gateway.auth.access",
        "gateway.auth.ack",
        "gateway.auth.addresses",
        "gateway.auth.origins",
        "gateway.auth.quota",
        "gateway.auth.scope",
    ),
]

# What a pure module may import from outside: nothing here touches a disk, a network or a process.
PURE_LIBRARIES = {
    *("__future__", "abc", "base64", "binascii", "bisect", "collections", "collections.abc", "cronsim", "dataclasses"),
    *("datetime", "enum", "functools", "hashlib", "heapq", "http", "itertools", "json", "math", "operator", "pydantic"),
    *("bisect", "ipaddress", "re", "statistics", "string", "struct", "types", "typing", "urllib.parse", "zlib"),
}
PURE_NAMES = {"pathlib.PurePath", "pathlib.PurePosixPath"}
IMPURE_BUILTINS = {"open", "input", "print", "exec", "eval", "__import__"}

# The one reader of settings, and those that make the environment of the program they turn into: they
# may pass the whole environment on, put our own commands first in PATH, and set variables that they do not read.
READS_SETTINGS = "gateway.config"
MAKES_AN_ENVIRONMENT = {
    "gateway.supervisor.serve",
    "gateway.chroma.native",
    "gateway.chroma.process",
    "gateway.documents.worker_pool",
}
PASSED_ON = {"PATH", "RUST_LOG"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}

KNOWS_THE_DISK_FORMAT = "gateway.chroma"
DISK_FORMAT = re.compile(
    r"chroma\.sqlite3|max_seq_id|embeddings_queue|embedding_metadata|index_metadata"
    r"|data_level0|link_lists|header\.bin|length\.bin"
)
SQLITE_LIBRARIES = {"sqlite3", "_sqlite3", "aiosqlite", "apsw", "sqlalchemy"}

# The other packages list their modules in their docstrings. Of these, `cli.main` and `readers.kinds` have tables.
WITHOUT_A_LIST = {"gateway", "gateway.cli", "gateway.documents.readers"}
WHOLE_NAME = re.compile(r"`(gateway(?:\.\w+)+)`")

SAYS_NOTHING = re.compile(r"(utils?|helpers?|managers?|common|misc)")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
WITH_A_LIST = sorted(name for name, path in FILES.items() if path.name == "__init__.py" and name not in WITHOUT_A_LIST)


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(), FILES[module])


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


@functools.cache
def imports(module: str) -> list[tuple[str, str]]:
    """What `module` imports, at any depth of its code: `from a.b import c` is ("a.b", "c"), `import a` ("a", "")."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found += ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found += ((source, alias.name) for alias in node.names)
    return found


def roots(module: str) -> set[str]:
    """The libraries `module` imports from: "a" of `import a.b`."""
    return {source.partition(".")[0] for source, _ in imports(module)}


def code_words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names and strings with their lines, without comments and docstrings: prose may name what code may not know."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, str | bytes):
                yield line, str(node.value)
            continue
        for field in ("id", "attr", "arg", "name", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield line, word


def environment_uses(tree: ast.Module, passed_on: set[str]) -> Iterator[str]:
    """Every use of the environment except passing all of it on, or the names in `passed_on`."""
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"line {node.lineno}: {name.name}" for name in node.names if name.name in ENVIRONMENT)
    read = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT]
    parent_of = {child: node for node in nodes if read for child in ast.iter_child_nodes(node)}
    for node in read:
        parent = parent_of[node]
        if passed_on and isinstance(parent, ast.Dict) and (None, node) in zip(parent.keys, parent.values, strict=True):
            continue
        # os.environ["X"], os.environ.get("X", …), os.environ.setdefault("X", …) and os.getenv("X", …)
        use = (
            parent_of[parent] if isinstance(parent, ast.Attribute) and parent.attr in ("get", "setdefault") else parent
        )
        key = use.slice if isinstance(use, ast.Subscript) else use.args[0] if isinstance(use, ast.Call) else None
        if not (isinstance(key, ast.Constant) and key.value in passed_on):
            yield f"line {node.lineno}: {ast.unparse(use)}"


def test_the_import_contracts_hold() -> None:
    """import-linter, with its configuration in pyproject.toml, finds no broken contract."""
    # In a process of its own: it sets up logging and sys.path to its liking.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_has_a_place_in_the_layers() -> None:
    """A module that the layers do not mention would be free to import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    placed = re.findall(r"[\w.]+", " ".join(layers))
    packages = {parent for place in placed for parent in parents(place)}
    homeless = [name for name in FILES if name not in packages and not any(within(name, place) for place in placed)]
    assert homeless == [], "give it a place in the layers of [tool.importlinter] in pyproject.toml"


def test_every_module_is_in_a_package() -> None:
    """import-linter does not see directories without an `__init__.py`."""
    assert [name for name, path in FILES.items() if not (path.parent / "__init__.py").is_file()] == []


def test_every_module_is_named_for_one_idea() -> None:
    """Nothing is called utils, helpers, manager or common."""
    assert [name for name in FILES if any(map(SAYS_NOTHING.fullmatch, re.split(r"[._]", name)))] == []


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", text))


@pytest.mark.parametrize("package", WITH_A_LIST)
def test_the_docstring_of_a_package_names_its_modules(package: str) -> None:
    """Each module stands in the list of its package, and each name in the list is a module."""
    text = ast.get_docstring(tree_of(package)) or ""
    modules = {name.rpartition(".")[2] for name in FILES if name.rpartition(".")[0] == package} - {"__main__"}
    assert modules - named_in(text) == set()
    # An entry begins with a mark or number, or stands below one that does.
    entries = set(re.findall(r"^(?:- |\d\. | {3})`([a-z0-9_]+)` ", text, re.MULTILINE))
    assert entries | named_in(text.partition("\nModules:\n")[2]) <= modules


def test_every_module_that_is_named_exists() -> None:
    """Docstrings and comments name modules of the package in full."""

    def exists(name: str) -> bool:
        module, _, attribute = name.rpartition(".")
        body = tree_of(module).body if module in FILES else []
        return name in FILES or attribute in {getattr(node, "name", None) for node in body}

    named = {(module, name) for module, path in FILES.items() for name in WHOLE_NAME.findall(path.read_text())}
    assert sorted((module, name) for module, name in named if not exists(name)) == []


def test_errors_is_a_leaf() -> None:
    """`gateway.errors` imports nothing but `typing`, so that anything may import it."""
    assert {source for source, _ in imports("gateway.errors")} <= {"typing"}


@pytest.mark.parametrize("module", PURE_MODULES)
def test_pure_modules_do_no_io(module: str) -> None:
    """Neither a pure module nor anything of ours that it imports can reach a disk, a network or a process."""
    ways = {module: module}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        builtins = {node.id for node in ast.walk(tree_of(name)) if isinstance(node, ast.Name)} & IMPURE_BUILTINS
        assert not builtins, f"{ways[name]} uses {builtins}"
        # Importing a module runs its packages too; `gateway` itself only asks for its version.
        needed = set(parents(name)) - {"gateway"}
        for source, imported in imports(name):
            full = f"{source}.{imported}"
            if within(source, "gateway"):
                needed.add(full if full in FILES else source)
            else:
                pure = source in PURE_LIBRARIES or full in PURE_NAMES
                assert pure, f"{ways[name]} imports {source}, which is not in PURE_LIBRARIES"
        for ours in needed - ways.keys():
            ways[ours] = f"{ways[name]} → {ours}"
            waiting.append(ours)


def test_settings_are_read_in_one_place() -> None:
    """Only `gateway.config` reads the environment; what starts a program may pass it on."""
    found = [
        f"{name}, {use}"
        for name in FILES
        if name != READS_SETTINGS
        for use in environment_uses(tree_of(name), PASSED_ON if name in MAKES_AN_ENVIRONMENT else set())
    ]
    assert found == []
    assert {name for name in FILES if "pydantic_settings" in roots(name)} <= {READS_SETTINGS}


@pytest.mark.parametrize(
    "code",
    [
        "os.environ['GATEWAY_STORE']",
        "os.environ.get('PORT')",
        "os.environ.setdefault('PORT', '')",
        "os.getenv('PORT')",
        "os.getenv(name)",
        "from os import environ",
        "dict(os.environ)",
        "for name in os.environ: pass",
        "{'a': os.environ}",
        "os.environ.items()",
    ],
)
def test_no_way_to_read_a_setting_is_overlooked(code: str) -> None:
    """Whoever may pass the environment on may still not read a setting from it."""
    assert list(environment_uses(ast.parse(code), PASSED_ON))


def test_the_disk_format_of_chroma_is_known_in_one_place() -> None:
    """Outside `gateway.chroma` no code names Chroma's files and tables or opens a SQLite database."""
    strangers = [name for name in FILES if not within(name, KNOWS_THE_DISK_FORMAT)]
    found = [
        f"{name}, line {line}: {word}"
        for name in strangers
        for line, word in code_words(tree_of(name))
        if DISK_FORMAT.search(word)
    ]
    assert found == []
    assert [name for name in strangers if roots(name) & SQLITE_LIBRARIES] == []
