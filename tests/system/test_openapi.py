"""The gateway's own routes under schemathesis: whatever is sent, the answer is one that the OpenAPI page promises."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
# Errors that say that something outside of the gateway is in the way.
HONEST = (502, 503, 504, 507)


@schemathesis.serializer("application/x-tar")
def _tar(_context: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway_process() as built:
        yield built.start()


@pytest.mark.parametrize(
    ("headers", "examples"),
    [
        pytest.param(ADMIN, 3, id="admin"),
        *(
            pytest.param(headers, 10, id=f"{name}-10", marks=pytest.mark.soak)
            for name, headers in {"admin": ADMIN, "nobody": {}, "wrong": {"Authorization": "Bearer wrong"}}.items()
        ),
    ],
)
def test_every_answer_is_as_promised(served: Gateway, headers: dict[str, str], examples: int) -> None:
    """Status, type and shape; never a failure of the gateway's own. Without a key nothing of /admin/* happens."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(headers={**(case.headers or {}), **headers}, timeout=60)
            case.validate_response(answer, checks=CHECKS)
            assert answer.status_code < 500 or answer.status_code in HONEST, answer.text
            if headers is not ADMIN and case.path.startswith("/admin"):
                # A parameter may make it a path that is no route at all.
                nowhere = answer.status_code == 404 and "there is nothing at" in answer.text
                assert answer.status_code == 401 or nowhere, answer.text
            if "quiesce" in case.path:
                httpx.post(f"{served.url}/admin/resume", headers=ADMIN)

        ask()
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    assert served.readyz().status_code == 200
