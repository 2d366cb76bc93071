"""Whether the Helm chart, the Kubernetes example and the Terraform files are valid. `scripts/check-deploy` runs it.

It runs in an environment of its own, which has Helm's own engine, the schemas of Kubernetes and a parser of HCL. Beside
them lies the package of the Google provider for Terraform's CDK, whose types say which arguments each resource takes.
`terraform validate` itself needs the provider, which only HashiCorp's registry has.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import helm_python
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "scripts/deploy"
CHART = DEPLOY / "helm/chroma-gateway"
TERRAFORM = DEPLOY / "terraform"
KUBERNETES_VERSIONS = ("1.27", "1.37")

STORE = {"store": "s3://my-bucket/some/prefix"}
VALUES: dict[str, dict[str, Any]] = {
    "least": {**STORE, "secret": {"name": "my-secret"}},
    "volume": {**STORE, "secret": {"name": "my-secret"}, "persistence": {"enabled": True, "storageClass": "fast"}},
    "all": {
        **STORE,
        "secret": {"data": {"GATEWAY_ADMIN_TOKEN": "x", "AWS_ACCESS_KEY_ID": "y"}},
        "settings": {"AWS_ENDPOINT_URL_S3": "https://example.com", "GATEWAY_KEEP_DAILY": "7"},
        "strategy": "Recreate",
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"secret": {"name": "my-secret"}}, "set store"),
    (STORE, "set secret.name"),
    ({**STORE, "secret": {"data": {"AWS_ACCESS_KEY_ID": "y"}}}, "set secret.name"),
    ({"store": "file:///store", "secret": {"name": "my-secret"}}, "does not match pattern"),
    ({**STORE, "secret": {"name": "my-secret"}, "replicas": 2}, "'replicas' not allowed"),
    ({**STORE, "secret": {"name": "my-secret"}, "settings": {"GATEWAY_KEEP_LAST": 3}}, "got number, want string"),
]


# ---------------------------------------------------------------------- Kubernetes


def check_chart() -> Iterator[str]:
    """Helm's linter accepts it, and what it renders fits the schemas. What is missing or misspelt is refused."""
    report = helm_python.lint(CHART, VALUES["least"], strict=True)
    yield from report["errors"]
    with helm_python.Chart.load(CHART) as chart:
        for name, values in VALUES.items():
            rendered = chart.render(values, name="demo", namespace="prod")
            documents = [
                each
                for path, text in rendered.items()
                if path.endswith(".yaml")
                for each in yaml.safe_load_all(text)
                if each
            ]
            for document in documents:
                yield from (f"{name}: {each}" for each in problems_of(document))
            yield from (f"{name}: {each}" for each in chart_problems(values, documents))
        for values, words in REFUSED:
            try:
                chart.render(values)
            except helm_python.HelmError as error:
                if words not in str(error):
                    yield f"{values}: {error}"
            else:
                yield f"{values} are accepted"


def chart_problems(values: dict[str, Any], documents: list[dict[str, Any]]) -> Iterator[str]:
    """What the schemas cannot know: one pod, its probes, a volume only where one was asked for, one name."""
    kinds = {each["kind"]: each for each in documents}
    expected = {"Deployment", "Service", "ServiceAccount"}
    expected |= {"PersistentVolumeClaim"} if values.get("persistence") else set()
    expected |= {"Secret"} if "data" in values["secret"] else set()
    expected |= {"ServiceMonitor"} if values.get("serviceMonitor") else set()
    if set(kinds) != expected:
        yield f"renders {sorted(kinds)}"
    spec = kinds["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    data = next(each for each in pod["volumes"] if each["name"] == "data")
    if spec["replicas"] != 1 or pod["enableServiceLinks"] or not container["securityContext"]["readOnlyRootFilesystem"]:
        yield "the pod is not as it must be"
    probes = [container[f"{each}Probe"]["httpGet"]["path"] for each in ("startup", "readiness", "liveness")]
    if probes != ["/readyz", "/readyz", "/healthz"]:
        yield f"the probes ask {probes}"
    if ("emptyDir" in data) == bool(values.get("persistence")):
        yield f"the data are on {data}"
    if ("persistence" in values or "strategy" in values) != (spec["strategy"]["type"] == "Recreate"):
        yield f"pods are replaced by {spec['strategy']}"
    if not kinds["Service"]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items():
        yield "the service selects other pods"
    if "ServiceMonitor" in kinds:
        selected = kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        if not selected.items() <= kinds["Service"]["metadata"]["labels"].items():
            yield "the ServiceMonitor selects another service"
        (endpoint,) = kinds["ServiceMonitor"]["spec"]["endpoints"]
        if endpoint["authorization"]["credentials"]["name"] != kinds["Secret"]["metadata"]["name"]:
            yield "the ServiceMonitor names another Secret"


def check_example() -> Iterator[str]:
    """scripts/deploy/kubernetes.yaml fits the schemas."""
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        yield from problems_of(document)


def check_pages() -> Iterator[str]:
    """The commands of the documentation name values of the chart and variables of the Terraform files."""
    declared = set(re.findall(r'variable "(\w+)"', (TERRAFORM / "variables.tf").read_text()))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        for command in re.findall(r"^helm (?:install|upgrade) .*$", text, re.MULTILINE):
            words = shlex.split(command)
            given = ",".join(value for option, value in itertools.pairwise(words) if option == "--set")
            kept = VALUES["least"] if "--reuse-values" in words else {}
            try:
                with helm_python.Chart.load(ROOT / words[3]) as chart:
                    chart.render(kept | helm_python.parse_set_string_values(given), name=words[2])
            except helm_python.HelmError as error:
                yield f"{page.name}: {command}: {error}"
        named = set(re.findall(r"-var (\w+)=", text)) | set(re.findall(r"\bTF_VAR_(\w+)", text))
        yield from (f"{page.name}: there is no variable {each}" for each in sorted(named - declared))


# Of the Prometheus Operator (Documentation/api-reference/api.md, ServiceMonitor). Kubernetes' own schemas lack it.
_OF_A_MONITOR = {
    "selector": {"matchLabels", "matchExpressions"},
    "endpoints": {"port", "path", "interval", "scrapeTimeout", "scheme", "authorization"},
}


def problems_of(document: dict[str, Any]) -> Iterator[str]:
    if document["kind"] == "ServiceMonitor":
        for name, known in _OF_A_MONITOR.items():
            found = document["spec"][name]
            for each in found if isinstance(found, list) else [found]:
                yield from (f"ServiceMonitor: {name}.{field} is unknown" for field in each.keys() - known)
        return
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{document['kind']} in Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"


# ---------------------------------------------------------------------- Terraform


def check_terraform(provider: Path) -> Iterator[str]:
    """The files parse and are formatted, what they refer to exists, and resources have the provider's arguments."""
    if terraform := shutil.which("terraform"):
        done = subprocess.run(
            [terraform, "fmt", "-check", "-diff", TERRAFORM], capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield f"terraform fmt: {done.stdout}{done.stderr}"
    else:
        print("check-deploy: terraform is not installed: its format is not checked")
    parsed = [hcl2.loads(path.read_text()) for path in sorted(TERRAFORM.glob("*.tf"))]
    text = "\n".join(path.read_text() for path in sorted(TERRAFORM.glob("*.tf")))
    variables = {unquoted(name) for file in parsed for block in file.get("variable", []) for name in block}
    used = set(re.findall(r"\bvar\.(\w+)", text))
    yield from (f"var.{each} is used or declared only" for each in sorted(variables ^ used))
    resources = {
        (unquoted(kind), unquoted(name)): body
        for file in parsed
        for block in file.get("resource", [])
        for kind, named in block.items()
        for name, body in named.items()
    }
    for kind, name in re.findall(r"\b(google_\w+)\.(\w+)", text):
        if (kind, name) not in resources:
            yield f"{kind}.{name} does not exist"
    if not provider.exists():
        print("check-deploy: npm could not fetch the provider's types: arguments of resources are not checked")
        return
    for (kind, name), body in resources.items():
        interfaces = interfaces_of(provider / kind.removeprefix("google_").replace("_", "-") / "index.d.ts")
        yield from (f"{kind}.{name}: {each}" for each in unfit(body, next(iter(interfaces)), interfaces))


# Of every resource.
_META = {"count", "for_each", "depends_on", "lifecycle", "provider", "provisioner", "connection"}


def interfaces_of(types: Path) -> dict[str, dict[str, tuple[bool, str]]]:
    """For each interface in TypeScript, its fields: whether they must be there, and their type."""
    text = re.sub(r"/\*.*?\*/", "", types.read_text(), flags=re.DOTALL)
    return {
        name: {
            field: (not optional, kind.strip())
            for field, optional, kind in re.findall(r"readonly (\w+)(\??): ((?:\{[^}]*\}|[^;{])+);", body)
        }
        for name, body in re.findall(r"export interface (\w+)[^{]*\{\n(.*?)\n\}", text, re.DOTALL)
    }


def unfit(body: dict[str, Any], interface: str, interfaces: dict[str, dict[str, tuple[bool, str]]]) -> Iterator[str]:
    """What is wrong with the arguments of one block."""
    fields = interfaces[interface]
    given: dict[str, Any] = {}
    for name, value in body.items():
        if name.startswith("__") or name in _META:
            continue
        if name == "dynamic":
            given |= {camel(unquoted(key)): each["content"] for block in value for key, each in block.items()}
        else:
            given[camel(name)] = value
    yield from (f"{interface} takes no {name}" for name in given.keys() - fields.keys())
    yield from (f"{interface} needs {name}" for name, (must, _) in fields.items() if must and name not in given)
    for name in given.keys() & fields.keys():
        nested = re.match(r"\w+", fields[name][1])
        if nested and nested[0] in interfaces:
            for block in given[name] if isinstance(given[name], list) else [given[name]]:
                yield from unfit(block, nested[0], interfaces)


def camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(each.title() for each in others)


def unquoted(name: str) -> str:
    return name.strip('"')


def main(provider: Path) -> int:
    failed = 0
    for what, found in (
        ("the Helm chart", check_chart()),
        ("kubernetes.yaml", check_example()),
        ("the commands of the documentation", check_pages()),
        ("the Terraform files", check_terraform(provider)),
    ):
        problems = list(found)
        failed += bool(problems)
        print(f"check-deploy: {what}: {'; '.join(problems) or 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
