"""What the conformance cases say of an answer beside its reason, held against ours (docs/reference/conformance.md)."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import DeniedHttpResponse

from extproc.decision import Answer
from extproc.response import check_response
from pch.client.challenge import challenge_parts, parse_pch_challenge, parse_www_authenticate
from pch.httpsig.accept_signature import parse_accept_signature


def check_refusal(expect: dict[str, Any], denied: DeniedHttpResponse) -> None:
    """Compare a refusal with what a case says of it."""
    fields = {each.header.key: each.header.value for each in denied.headers}
    assert {name: fields[name] for name in expect["fields"]} == expect["fields"]
    assert not fields.keys() & set(expect["absent"])
    problem = json.loads(denied.body) if denied.body else None
    if problem is not None:
        assert problem.keys() == {"type", "title", "status", "detail", "reason"}
        problem = {name: problem[name] for name in expect["problem"]}
    assert problem == expect["problem"]
    fresh = parse_pch_challenge([fields["pch-challenge"].encode()] if "pch-challenge" in fields else [])
    if "granted" in expect:
        assert {challenge_parts(each).relax_grant for each in fresh} == {expect["granted"]}
    offer = parse_www_authenticate([fields["www-authenticate"].encode()] if "www-authenticate" in fields else [])
    if "offer" in expect:
        assert offer is not None
        said = dataclasses.asdict(offer) | {"algorithms": list(offer.algorithms), "hints": list(offer.hints)}
        expected = expect["offer"] | {"challenge": fresh[0]}
        assert {name: said[name] for name in expected} == expected
    if "accept_signature" in expect:
        asked = parse_accept_signature([fields["accept-signature"].encode()])
        assert {
            label: {"components": [each.name for each in member.components], **member.params}
            for label, member in asked.items()
        } == {label: member | {"nonce": fresh[0]} for label, member in expect["accept_signature"].items()}
    if "relax" in expect:
        assert fields["pch-relax"] == expect["relax"]


def check_upstream(expect: dict[str, Any], answer: Answer) -> None:
    """Do what the edge is told to, and look at what is left."""
    passed = check_response(answer).ok_response
    fields: dict[str, list[str]] = {}
    for name, value in answer.request.message.headers:
        fields.setdefault(name, []).append(value.decode("latin-1"))
    fields |= {each.header.key: [each.header.value] for each in passed.headers}
    content, order = answer.request.body, answer.order
    if order is not None:
        content = content[order.envelope_bytes :]
        fields["content-length"] = [str(order.content_bytes)]
    left = {name: ", ".join(lines) for name, lines in fields.items() if name not in set(passed.headers_to_remove)}
    assert {name: left.get(name) for name in expect["fields"]} == expect["fields"]
    assert not left.keys() & set(expect["absent"])
    if "content_base64" in expect:
        assert content == base64.b64decode(expect["content_base64"])
