"""The public surface changes only together with a line in CHANGELOG.md (API.md §5, §9)."""

from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2

from kms.openapi import build_openapi
from kms.operation_table import OPERATIONS
from kms.proto.ron.kms.v1 import kms_pb2
from tools.kms_surface import CLIENT_FILE, OPENAPI_FILE, PROTO_FILE, changelog_line, client_names, openapi_yaml

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"
MEND = "run tools/kms_surface.py and put the line that it prints into CHANGELOG.md"


def test_the_committed_openapi_document_is_the_one_that_is_served():
    assert OPENAPI_FILE.read_text() == openapi_yaml(), MEND
    assert yaml.safe_load(OPENAPI_FILE.read_text()) == build_openapi()


def test_the_clients_public_names_are_the_committed_ones():
    assert CLIENT_FILE.read_text() == client_names(), MEND


def test_the_changelog_names_this_surface():
    line = changelog_line(openapi_yaml(), PROTO_FILE.read_text(), client_names())
    assert line in CHANGELOG.read_text(), MEND


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_change_of_the_surface_asks_for_another_line(place):
    texts = [openapi_yaml(), PROTO_FILE.read_text(), client_names()]
    former = changelog_line(*texts)
    texts[place] += "x"
    assert changelog_line(*texts) != former


def test_the_generated_code_is_of_the_committed_proto():
    form = descriptor_pb2.FileDescriptorProto()
    kms_pb2.DESCRIPTOR.CopyToProto(form)
    text = PROTO_FILE.read_text()
    for message in form.message_type:
        body = text.partition(f"message {message.name} {{\n")[2].partition("\n}\n")[0]
        for field in message.field:
            assert f" {field.name} = {field.number};" in body, (message.name, field.name)
        written = [line for line in body.splitlines() if line.strip().endswith(";")]
        assert len(written) == len(message.field)
    for method in form.service[0].method:
        given, answer = (each.rpartition(".")[2] for each in (method.input_type, method.output_type))
        assert f"rpc {method.name}({given}) returns ({answer});" in text


def test_every_operation_is_described_with_its_errors():
    paths = build_openapi()["paths"]
    for operation in OPERATIONS:
        described = paths[operation.path][operation.method.lower()]
        assert described["operationId"] == operation.op
        assert {"200", "400", "401", "403", "404", "409", "413", "429", "500", "503", "504"} <= set(
            described["responses"]
        )
        assert ("requestBody" in described) == (operation.body is not None)
    assert "422" in paths["/checkpoint"]["post"]["responses"]


def test_every_schema_refuses_unknown_fields_and_every_reference_leads_somewhere():
    document = build_openapi()
    schemas = document["components"]["schemas"]
    assert all(schema["additionalProperties"] is False for schema in schemas.values())

    def references(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for each in node:
                yield from references(each)

    for reference in set(references(document)):
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
