"""Dockerfiles, deployment examples and workflows are valid, pinned, and use existing settings and scripts."""

import configparser
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from gateway import vectorstore
from gateway.config import Settings, variable_of
from gateway.server.container import WRITTEN_CONFIG

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.dev"]
SHIPPED = [
    *DOCKERFILES,
    ROOT / "docker-compose.yml",
    ROOT / ".env.example",
    *sorted(
        path
        for path in (ROOT / "scripts/deploy").rglob("*")
        if path.suffix in {".yaml", ".yml", ".toml", ".json", ".tf", ".txt"}
    ),
    *WORKFLOWS,
]
KNOWN = {variable_of(field) for field in Settings.model_fields}
# A variable of a server in the development image.
OTHERS = {"GATEWAY_PORT"}


def supervised(program: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "supervisord.conf")
    return parser[f"program:{program}"]


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_setting_is_unknown(path: Path) -> None:
    """The gateway reads every GATEWAY_ variable in these files. An unknown one would stop its start."""
    assert set(re.findall(r"\bGATEWAY_[A-Z0-9_]+\b", path.read_text())) - KNOWN <= OTHERS


def test_the_final_snapshot_fits_into_what_supervisord_waits() -> None:
    """The gateway may use all of its budget and then give the lease back before supervisord kills it."""
    needed_s = Settings.model_fields["exit_budget_s"].default + vectorstore._LEAST_FOR_THE_LEASE_S
    assert needed_s <= supervised("gateway").getint("stopwaitsecs")


def test_supervisord_starts_chroma_with_the_file_that_the_gateway_writes() -> None:
    """Two names of one file."""
    assert supervised("chroma")["command"].split()[-1] == str(WRITTEN_CONFIG)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_parses(path: Path) -> None:
    """YAML and JSON files are valid. Helm's templates are neither before they are rendered (`scripts/check-deploy`)."""
    if path.parent.name == "templates":
        return
    if path.suffix in {".yaml", ".yml"}:
        assert list(yaml.safe_load_all(path.read_text()))
    elif path.suffix == ".json":
        assert json.loads(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned(path: Path) -> None:
    """An action is named by its digest. The version is in a comment for people and Dependabot."""
    uses = re.findall(r"uses: *(.+)", path.read_text())
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each) for each in uses)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_minimal_permissions(path: Path) -> None:
    """A workflow has no permissions. A job may read the code, and the deployment may request an identity token."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        allowed = {"contents": "read"} | ({"id-token": "write"} if name == "cloud-run" else {})
        assert job["permissions"] == allowed
        assert job["timeout-minutes"] <= 90


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_steps_are_scripts(path: Path) -> None:
    """A step runs a script of the repository. It has no text of the event, which could be code."""
    for step in steps(path):
        if run := step.get("run"):
            assert "${{" not in run
            assert run.startswith("docker login") or any(
                (ROOT / script).is_file() for script in re.findall(r"scripts/[a-z-]+", run)
            ), run


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_any_builder_can_build_it(path: Path) -> None:
    """A Dockerfile needs no BuildKit frontend and starts from the pinned minor version of Python."""
    text = path.read_text()
    assert not re.search(r"^# *syntax=|<<|--link|--mount", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages == {"python:3.12-slim"}


def test_the_image_is_as_documented() -> None:
    """It does not run as root, stops by SIGTERM, is checked at /readyz, has an init and locked packages."""
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)", text, re.MULTILINE)[-1] == "10001:0"
    assert "STOPSIGNAL SIGTERM" in text
    assert "tini" in text.partition("ENTRYPOINT")[2]
    assert "--require-hashes" in text
    assert '"/readyz"' in (ROOT / "scripts/image/healthcheck").read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda each: each.name)
def test_images_have_what_the_project_is_built_of(path: Path) -> None:
    """The files that pyproject.toml puts into the wheel are copied before the project is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [each for files in project["tool"]["setuptools"]["data-files"].values() for each in files]
    copied = re.findall(r"^COPY (.*pyproject\.toml.*) \./$", path.read_text(), re.MULTILINE)
    assert set(needed) | {project["project"]["readme"]} <= set(copied[0].split())


def test_files_that_docker_copies_are_not_ignored() -> None:
    """Every file that a Dockerfile copies exists and is not in .dockerignore."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.+)", path.read_text(), re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(f"{source.removeprefix('./')}/".startswith(f"{each}/") for each in allowed), source


def test_compose_publishes_to_this_machine_only() -> None:
    """The development setup opens no port to the network, and every image has a version."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "build" in service or re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])


def cloudrun(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/deploy-cloudrun", *arguments],
        env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WHERE = ("--project", "some-project", "--region", "europe-west1", "--service", "vectors")
WHAT = ("--image", "docker.io/me/chroma-gateway@sha256:" + "0" * 64, "--store", "s3://my-bucket/prefix")


def test_a_dry_run_shows_the_service() -> None:
    """It has no placeholder left, one instance, CPU at all times, and probes at the gateway's routes."""
    shown = cloudrun("deploy", "--dry-run", *WHERE, *WHAT, "--memory", "4Gi")
    assert shown.returncode == 0, shown.stderr
    text, _, commands = shown.stdout.partition("\n---\n")
    assert "${" not in text
    service = yaml.safe_load(text)
    template = service["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/maxScale"] == "1"
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    (container,) = template["spec"]["containers"]
    assert container["image"] == WHAT[1]
    assert container["resources"]["limits"]["memory"] == "4Gi"
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    # Cloud Run refuses more.
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 240
    assert "gcloud run services replace" in commands
    assert "scripts/smoke" in commands


def test_a_value_cannot_inject_yaml_or_commands() -> None:
    """A value with a line break, quotes or `$` is refused."""
    for bad in ("s3://b\n  evil: true", "s3://b'; true", "$(true)"):
        assert cloudrun("deploy", "--dry-run", *WHERE, *WHAT[:2], "--store", bad).returncode == 2


FAKE_GCLOUD = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *revisionName*) echo vectors-00001 ;;
    *status.url*) echo http://127.0.0.1:1 ;;
    *replace*) exit "$REPLACED" ;;
esac
"""


def test_a_failed_deployment_is_rolled_back(tmp_path: Path) -> None:
    """If the new revision cannot be deployed, all traffic goes to the one before, and the script fails."""
    (tmp_path / "gcloud").write_text(FAKE_GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "REPLACED": "1",
        "GATEWAY_ADMIN_TOKEN": "a-token-for-tests-only",
    }
    failed = cloudrun("deploy", *WHERE, *WHAT, env=env)
    assert failed.returncode == 1
    assert "--to-revisions vectors-00001=100" in (tmp_path / "calls").read_text().splitlines()[-1]
    assert "a-token-for-tests-only" not in (tmp_path / "calls").read_text() + failed.stdout + failed.stderr


def test_versions_of_chromadb_are_those_of_the_project() -> None:
    """scripts/test-chromadb names one oldest version and a range for the newest."""
    for which, form in (("oldest", r"chromadb==[\d.]+"), ("newest", r"chromadb>=[\d.]+,<[\d.]+")):
        said = subprocess.run(
            [ROOT / "scripts/test-chromadb", which, "--print"], capture_output=True, text=True, timeout=60, check=True
        )
        assert re.fullmatch(rf"test-chromadb: {form}\n", said.stdout)


def test_the_ecs_task_is_valid() -> None:
    """The task definition fits Amazon's own model of RegisterTaskDefinition."""
    task = json.loads((ROOT / "scripts/deploy/ecs-task.json").read_text())
    operation = botocore.session.get_session().get_service_model("ecs").operation_model("RegisterTaskDefinition")
    problems = ParamValidator().validate(task, operation.input_shape)
    assert not problems.has_errors(), problems.generate_report()


@pytest.mark.parametrize(
    "name",
    [
        *("kubernetes.yaml", "ecs-task.json", "fly.toml", "cloudrun.yaml", "terraform/main.tf"),
        "helm/chroma-gateway/templates/deployment.yaml",
    ],
)
def test_examples_fit_the_image(name: str) -> None:
    """The examples use the ports, directories and routes of the image."""
    text = (ROOT / "scripts/deploy" / name).read_text()
    assert "8000" in text
    if name not in {"cloudrun.yaml", "terraform/main.tf"}:
        assert "/data" in text
    assert "/readyz" in text or "healthcheck" in text


def test_the_systemd_unit_fits_the_checkout() -> None:
    """It starts the gateway in its own directory and gives it time for the final snapshot."""
    unit = subprocess.run(
        [ROOT / "scripts/install-service", "unit"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert f"WorkingDirectory={ROOT}\n" in unit
    assert f"ExecStart={ROOT}/.venv/bin/chroma-gateway serve\n" in unit
    assert "TimeoutStopSec=30" in unit
