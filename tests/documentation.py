"""The pages of the documentation, and what tests read out of them."""

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """The page's path from the repository's root."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block of `page` in one of `languages`, in order."""
    return [(language, text) for language, text in _FENCE.findall(page.read_text()) if language in languages]


def section(page: Path, heading: str, *languages: str) -> list[str]:
    """The texts of the fenced blocks in one of `languages` between `heading` and the next one of the same level."""
    below = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [text for language, text in _FENCE.findall(below) if language in languages]


def script(page: Path, python: str) -> str:
    """What `page` tells people to type, in its order, as a script of bash. Blocks of Python are run by `python`."""
    return "".join(
        text if language == "bash" else f"{python} - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n"
        for language, text in blocks(page, "bash", "python")
    )


def run_script(text: str, directory: Path, env: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `text` in bash until its first failure. All that it prints is in `stdout`."""
    # Into a file: what it starts in the background holds what it was given.
    with tempfile.TemporaryFile() as output:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=timeout_s,
            check=False,
        )
        output.seek(0)
        return subprocess.CompletedProcess(ended.args, ended.returncode, output.read().decode())


def prose(page: Path) -> str:
    """The text of `page` without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def rows(page: Path) -> list[list[str]]:
    """The cells of each row of every table of `page`, without the rows of dashes."""
    lines = (line for line in prose(page).splitlines() if line.startswith("|"))
    found = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    return [cells for cells in found if not all(set(cell) <= set("-: ") for cell in cells)]


def anchors(page: Path) -> set[str]:
    """What a link to `page` may have after its `#`, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
