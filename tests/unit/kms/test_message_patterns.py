"""A pattern is matched by the whole text, in messages, files and settings alike (API.md §2)."""

import typing

import msgspec
import pytest

from kms import audit_head, audit_record, config_sections, messages, root_key
from kms.openapi import build_openapi


def hints(kind):
    return typing.get_type_hints(kind, include_extras=True)


TEXTS = [
    (messages.PayloadB3, "0" * 64),
    (messages.HashHex, "a" * 64),
    (messages.OpId, "0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"),
    (messages.Label, "core"),
    (hints(messages.DeriveRequest)["context"], "a:b/c"),
    (hints(messages.CheckpointRequest)["origin"], "log.example/1"),
    (hints(root_key.RootKey)["id"], "0" * 16),
    (config_sections.EnvName, "KMS_PIN"),
    (audit_record._Hash, "0" * 64),
]


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_a_text_with_a_line_end_behind_it_is_another_text(kind, text):
    assert msgspec.convert(text, kind) == text
    for other in (text + "\n", "\n" + text, text + "\n\n", text + "\r\n"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(other, kind)


@pytest.mark.parametrize("module", [messages, root_key, audit_head, audit_record])
def test_no_pattern_ends_where_a_line_end_may_follow(module):
    structs = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    assert structs
    found = [text for each in structs for text in patterns(msgspec.json.schema(each, schema_hook=lambda _: {}))]
    assert [text for text in found if not text.endswith(r"\Z")] == []


def test_the_openapi_document_has_the_patterns_of_ecma_262():
    found = list(patterns(build_openapi()))
    assert "^[0-9a-f]{64}$" in found
    assert [text for text in found if not text.endswith("$") or r"\Z" in text] == []


def patterns(schema):
    """Give every pattern in a JSON schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from patterns(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for each in schema.values():
            yield from patterns(each)
