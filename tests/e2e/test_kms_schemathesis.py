"""Requests made from the OpenAPI document, good ones and bad ones, against the real service (API.md §4)."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from kms.openapi import build_openapi
from tests.support.kms_service import KmsProcess

EXAMPLES = 12
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    limits = {"SIGN_RATE_LIMIT": "100000", "DEADLINE_AUDIT_APPEND": "2s"}
    process = KmsProcess(tmp_path_factory.mktemp("kms"), {"BACKEND": "inmem", "AMNESIA": "1", **limits})
    yield process.start()
    process.stop()


@pytest.fixture(scope="module")
def target(service):
    """Where requests go, and the capability that they carry."""
    return f"http://{service.address('http')}/v1/kms", service.token()


api = schemathesis.openapi.from_dict(build_openapi())
api.config.generation.update(max_examples=EXAMPLES)


@api.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_the_service_keeps_its_document(case, target):
    base_url, token = target
    response = case.call(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
    case.validate_response(response, checks=CHECKS)


def test_afterwards_it_is_as_ready_as_before(service):
    assert service.ask("GET", "/readyz", token=None, role="metrics").json["missing"] == []
    assert service.metric('rejected_total{reason="internal"}') == 0.0
    assert service.events("internal") == []
