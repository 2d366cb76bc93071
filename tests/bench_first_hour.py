"""How long a first hour takes: the pages, word for word, in a clone. `scripts/bench-first-hour` runs it.

It clones the last commit, installs it, and does what the pages say, on the ports that they name. It tells when each
step ended. All of it is the machine's time: a person also reads, and pastes the blocks.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.documentation import DOCS, ROOT, blocks, name_of, run_script, script

TIMEOUT_S = 600
PYTHON = ".venv/bin/python"
FROM_A_CLONE = [ROOT / "README.md", DOCS / "quickstart.md", DOCS / "start/laptop.md", DOCS / "start/pod.md"]
BESIDE_A_GATEWAY = [
    DOCS / name for name in ("snapshots-and-restore.md", "monitoring.md", "start/on-call.md", "admin-api.md")
]
START = "./scripts/run >gateway.log 2>&1 &\nuntil curl -fso /dev/null http://127.0.0.1:8000/readyz; do sleep 1; done\n"
# What ends a step of README.md, in its order: the first command after it.
STEPS = ((PYTHON, "ready"), ("kill ", "first snapshot"), (PYTHON, "first restore"))
# Whatever fails, nothing of it stays. Each command is printed with its time. As root, bash reads no PS4 from outside.
_BEGIN = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\nPS4='+@$EPOCHREALTIME '\nset -x"


def run(text: str, clone: Path, env: dict[str, str]) -> list[tuple[float, str]]:
    """Run `text`; return when each command began, in seconds since the epoch. Ends the program if one fails."""
    ended = run_script(f"{_BEGIN}\n{text}", clone, env, TIMEOUT_S)
    printed = ended.stdout
    if ended.returncode:
        sys.exit(f"{printed[-4000:]}\nbench-first-hour: status {ended.returncode}")
    return [(float(at), command) for at, command in re.findall(r"^\++@([\d.]+) (.*)$", printed, re.MULTILINE)]


def steps_of(commands: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """When each of STEPS ended."""
    left, found = list(commands), []
    for prefix, step in STEPS:
        while not left[0][1].startswith(prefix):
            left.pop(0)
        found.append((left.pop(0)[0], step))
    return found


def empty(clone: Path) -> None:
    """Remove what a page left behind."""
    shutil.rmtree(clone / "var", ignore_errors=True)
    (clone / ".env").unlink(missing_ok=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hour", dir="/tmp") as name:  # short, for the supervisor's socket
        clone = Path(name) / "clone"
        env = {
            each: os.environ[each] for each in os.environ if not each.startswith(("GATEWAY_", "AWS_", "PORT", "HOST"))
        }
        began = time.time()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        cloned = time.time()
        subprocess.run([clone / "scripts/setup"], check=True, env=env)
        installed = time.time()
        print(f"clone {cloned - began:.1f} s, install {installed - cloned:.1f} s")
        for page in FROM_A_CLONE:
            empty(clone)
            began = time.time()
            commands = run(script(page, PYTHON), clone, env)
            print(f"{name_of(page)}: {time.time() - began:.1f} s in all")
            if page.name == "README.md":
                print("  " + ", ".join(f"{step} after {at - began:.1f} s" for at, step in steps_of(commands)))
        empty(clone)
        notes = blocks(DOCS / "quickstart.md", "python")[0][1]
        setup = f"{START}.venv/bin/python - <<'END_OF_PYTHON'\n{notes}END_OF_PYTHON\n"
        setup += 'export PATH="$PWD/.venv/bin:$PATH" GATEWAY_ADMIN_TOKEN=$(cat var/admin-token)\n'
        for page in BESIDE_A_GATEWAY:
            began = time.time()
            run(setup + script(page, PYTHON), clone, env)
            print(f"{name_of(page)}, beside a gateway: {time.time() - began:.1f} s in all")


if __name__ == "__main__":
    main()
