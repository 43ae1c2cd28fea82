"""`/v1/kms` over HTTP/JSON (API.md, INTEROP.md §1 and §5)."""

import asyncio
import gzip
import json
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms import errors
from kms.errors import ErrorCode, KmsError
from kms.http_api import MethodNotAllowed, decode_request, route
from kms.http_body import BodyBudget, Disconnected, read_body
from kms.messages import (
    AttestationEvidence,
    ChangeKeyStateRequest,
    GetKeyRequest,
    GetKeyResponse,
    PublicMaterial,
    RotateKeyRequest,
    RotateResponse,
    Signature,
    SignRequest,
    SignResponse,
    VerifyDetails,
    VerifyResponse,
)
from kms.operation_table import BY_OP, OPERATIONS
from kms.principal import Scope
from tests.support.kms_edge import DIGEST, KID, EdgeParts, principal

SIGNED = SignResponse(sigs=[Signature(alg="ed25519", signature_b64="AA==")], kid=KID)
SIGN = {"kid_or_set": {"kid": KID}, "payload_b3": DIGEST}
QUOTED = KID.replace("#", "%23")


async def test_a_request_reaches_the_operation_with_who_asked_and_its_answer_comes_back():
    parts = EdgeParts(SIGNED)
    corr_id = str(uuid.uuid4())
    answer = await parts.ask(body=SIGN | {"policy": {"produce_hybrid": True}}, x_corr_id=corr_id.upper())
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"sigs": [{"alg": "ed25519", "signature_b64": "AA=="}], "kid": KID}
    assert answer.headers["x-corr-id"] == corr_id
    [(op, request, context)] = parts.dispatcher.asked
    assert op == "sign"
    assert request == SignRequest(**json_to_sign(SIGN | {"policy": {"produce_hybrid": True}}))
    assert (context.corr_id, context.path, context.peer, context.transport) == (
        corr_id,
        "/v1/kms/sign",
        "192.0.2.1:1234",
        "http",
    )
    assert context.principal is parts.authority.principal


def json_to_sign(document):
    import msgspec

    decoded = msgspec.convert(document, SignRequest)
    return {name: getattr(decoded, name) for name in decoded.__struct_fields__}


@pytest.mark.parametrize("offered", [None, "", "not-a-uuid", DIGEST, "{" + str(uuid.uuid4())[1:], "x" * 36])
async def test_a_correlation_id_that_is_no_uuid_is_replaced_by_a_uuid_7_of_our_own(offered):
    parts = EdgeParts(SIGNED)
    fields = {} if offered is None else {"x_corr_id": offered}
    made = uuid.UUID((await parts.ask(body=SIGN, **fields)).headers["x-corr-id"])
    assert made.version == 7
    parts.set("observability", correlation_id_mode="uuidv4")
    assert uuid.UUID((await parts.ask(body=SIGN)).headers["x-corr-id"]).version == 4


@pytest.mark.parametrize("version", [1, 3, 4, 5, 7])
async def test_a_uuid_of_any_version_is_honoured(version):
    offered = str(uuid.UUID(int=uuid.uuid4().int & ~(0xF << 76) | version << 76))
    assert (await EdgeParts(SIGNED).ask(body=SIGN, x_corr_id=offered)).headers["x-corr-id"] == offered


@pytest.mark.parametrize("kid", [KID, KID.partition("#")[0]])
@pytest.mark.parametrize("slash", ["/", "%2F", "%2f"])
@pytest.mark.parametrize(
    ("method", "action", "op", "kind"),
    [
        ("GET", "", "get_key", GetKeyRequest),
        ("POST", "/rotate", "rotate", RotateKeyRequest),
        ("POST", "/disable", "disable", ChangeKeyStateRequest),
        ("POST", "/enable", "enable", ChangeKeyStateRequest),
        ("POST", "/destroy", "destroy", ChangeKeyStateRequest),
    ],
)
async def test_a_path_names_its_key_with_slashes_raw_or_quoted(kid, slash, method, action, op, kind):
    parts = EdgeParts(RotateResponse(kid=KID, previous=KID))
    path = "/v1/kms/keys/" + kid.replace("#", "%23").replace("/", slash) + action
    assert (await parts.ask(method, path)).status == 200
    [(asked, request, context)] = parts.dispatcher.asked
    assert (asked, type(request), request.kid) == (op, kind, kid)
    assert context.path == f"/v1/kms/keys/{kid}{action}"


async def test_an_escape_is_undone_once_and_never_twice():
    parts = EdgeParts(SIGNED)
    assert (await parts.ask("GET", "/v1/kms/keys/a%252Fb")).status == 200
    assert parts.dispatcher.asked[0][1].kid == "a%2Fb"
    assert (await parts.ask("GET", "/v1/kms/keys/%FF")).error["message"] == "the path's kid is not UTF-8"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/kms/sign", 405, "POST"),
        ("DELETE", f"/v1/kms/keys/{QUOTED}", 405, "GET"),
        ("GET", f"/v1/kms/keys/{QUOTED}/rotate", 405, "POST"),
        ("POST", "/v1/kms/openapi.json", 405, "GET"),
        ("POST", "/v1/kms/", 404, None),
        ("POST", "/v1/kms/sign/", 404, None),
        ("POST", "/v2/kms/sign", 404, None),
        ("POST", "/", 404, None),
        ("GET", "/v1/kms/keys/" + "a" * 2000, 404, None),
    ],
)
async def test_paths_and_methods_that_are_not_there(method, path, status, allow):
    parts = EdgeParts(SIGNED)
    answer = await parts.ask(method, path)
    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    assert answer.error["code"] == ("Unsupported" if status == 405 else "NotFound")
    assert parts.dispatcher.asked == []


@given(st.binary(max_size=60), st.sampled_from(["GET", "POST", "PUT"]))
def test_any_path_is_an_operation_or_a_refusal(tail, method):
    try:
        operation, _ = route(b"/v1/kms/" + tail, method)
    except KmsError:
        return
    assert operation in OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.op)
async def test_without_a_capability_or_with_another_scope_nothing_is_read(operation):
    parts = EdgeParts(SIGNED)
    path = operation.path_for(QUOTED)
    for value in (None, "Bearer bad"):
        answer = await parts.ask(operation.method, path, chunks=[b"x" * 100] * 3, authorization=value)
        assert (answer.status, answer.error["code"], answer.reads) == (401, "NoCapability", 0)
        assert answer.headers["www-authenticate"].startswith("Bearer")
    parts.authority.principal = principal(*(set(Scope) - {operation.scope}))
    answer = await parts.ask(operation.method, path, chunks=[b"x" * 100] * 3)
    assert (answer.status, answer.error["code"], answer.reads) == (403, "NoCapability", 0)
    assert answer.error["hint"] == f"attach macaroon with {operation.scope.value}"
    assert parts.dispatcher.asked == []
    assert parts.counted("rejected_total", reason="unauth") == 3
    assert parts.counted("auth_failures_total") == 2
    parts.authority.principal = principal(operation.scope)
    assert (await parts.ask(operation.method, path, authorization="Bearer good")).status != 403


@pytest.mark.parametrize(
    ("fields", "closes"),
    [
        ({"content_length": "100"}, False),
        ({"content_length": "65536"}, False),
        ({}, False),
        ({"content_length": "65537"}, True),
        ({"content_length": "9" * 30}, True),
        ({"content_length": "100", "expect": "100-continue"}, True),
        ({"transfer_encoding": "chunked"}, True),
    ],
)
async def test_a_refused_request_ends_the_connection_only_when_its_body_is_too_much_to_pass_over(fields, closes):
    answer = await EdgeParts(SIGNED).ask(body=SIGN, authorization=None, **fields)
    assert (answer.status, answer.reads) == (401, 0)
    assert (answer.headers.get("connection") == "close") is closes


async def test_a_reader_verifies_only_where_the_deployment_says_so():
    parts = EdgeParts(VerifyResponse(ok=True, details=VerifyDetails(checked=[])))
    parts.authority.principal = principal(Scope.READ)
    body = {"payload_b3": DIGEST, "sigs": [{"alg": "ed25519", "signature_b64": "AA=="}]}
    assert (await parts.ask(path="/v1/kms/verify", body=body)).status == 403
    parts.set("security", verify_with_read=True)
    assert (await parts.ask(path="/v1/kms/verify", body=body)).status == 200
    assert (await parts.ask(body=SIGN)).status == 403


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"[" * 100_000, "Expected 'object', got 'array'"),
        (b'{"kid_or_set":{"kid":"\xff"}}', "the body is not valid JSON"),
        (b"[]", "Expected 'object', got 'array'"),
        (json.dumps(SIGN | {"extra": 1}).encode(), "unknown field"),
        (json.dumps(SIGN | {"kid_or_set": {"kid": KID, "x": 1}}).encode(), "unknown field at $.kid_or_set"),
        (json.dumps({"payload_b3": DIGEST}).encode(), "Object missing required field 'kid_or_set'"),
        (json.dumps(SIGN | {"payload_b3": DIGEST.upper()}).encode(), "at $.payload_b3"),
        (json.dumps(SIGN | {"payload_b3": 7}).encode(), "Expected 'str', got 'int' at $.payload_b3"),
        (json.dumps(SIGN | {"kid_or_set": {"kid_set": []}}).encode(), "at $.kid_or_set.kid_set"),
        (json.dumps(SIGN | {"kid_or_set": {"kid_set": ["k"] * 65}}).encode(), "at $.kid_or_set.kid_set"),
        (json.dumps(SIGN | {"kid_or_set": {"kid": "k" * 257}}).encode(), "at $.kid_or_set.kid"),
        (json.dumps(SIGN | {"op_id": "my password"}).encode(), "at $.op_id"),
        (json.dumps(SIGN).encode() + b"x", "the body is not valid JSON"),
    ],
)
async def test_a_body_that_breaks_the_contract_is_refused_without_quoting_it(body, message):
    """I-13: unknown fields, wrong types, values beyond their bounds."""
    parts = EdgeParts(SIGNED)
    answer = await parts.ask(body=body, content_type="application/json")
    assert (answer.status, answer.error["code"]) == (400, "BadRequest")
    assert message in answer.error["message"]
    assert "password" not in answer.body.decode()
    assert parts.dispatcher.asked == []


async def test_an_enumeration_does_not_quote_what_was_sent():
    body = {"payload_b3": DIGEST, "sigs": [{"alg": "my-secret", "signature_b64": "AA=="}]}
    answer = await EdgeParts(SIGNED).ask(path="/v1/kms/verify", body=body)
    assert answer.error["message"] == "a value is not one of those that the contract names at $.sigs[0].alg"
    assert "my-secret" not in answer.body.decode()


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"content_type": "text/plain"}, 400, "Unsupported"),
        ({"content_type": ""}, 400, "Unsupported"),
        ({"content_encoding": "br"}, 400, "Unsupported"),
        ({"content_encoding": "gzip, gzip"}, 400, "Unsupported"),
        ({"content_length": "1048577"}, 413, "TooLarge"),
        ({"content_length": "9" * 20}, 400, "BadRequest"),
        ({"content_length": "-1"}, 400, "BadRequest"),
    ],
)
async def test_header_fields_that_are_refused(fields, status, code):
    answer = await EdgeParts(SIGNED).ask(body=SIGN, **fields)
    assert (answer.status, answer.error["code"]) == (status, code)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_content_types_that_are_json(kind):
    assert (await EdgeParts(SIGNED).ask(body=SIGN, content_type=kind)).status == 200


async def test_a_query_and_a_body_where_none_belongs_are_refused():
    parts = EdgeParts(SIGNED)
    assert (await parts.ask(body=SIGN, query=b"a=b")).error["message"] == "this path takes no query"
    assert (await parts.ask("GET", f"/v1/kms/keys/{QUOTED}", b"{}")).error["message"] == "this path takes no body"


async def test_matrix_a_body_over_max_body_bytes_is_413_before_it_is_read_whole():
    parts = EdgeParts(SIGNED)
    answer = await parts.ask(chunks=[b" " * 65_536] * 40)
    assert (answer.status, answer.error["code"], answer.reads) == (413, "TooLarge", 17)
    fits = [b" " * 65_536] * 15 + [json.dumps(SIGN).encode()]
    assert (await parts.ask(chunks=fits)).status == 200
    exactly = json.dumps(SIGN).encode().ljust(1 << 20)
    assert (await parts.ask(body=exactly)).status == 200
    assert (await parts.ask(body=exactly + b" ")).status == 413


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
async def test_matrix_a_ratio_over_decompress_ratio_cap_is_400_and_counted(encoding, pack):
    parts = EdgeParts(SIGNED)
    assert (await parts.ask(body=pack(json.dumps(SIGN).encode()), content_encoding=encoding)).status == 200
    bomb = pack(json.dumps(SIGN).encode().ljust(200_000))
    answer = await parts.ask(body=bomb, content_encoding=encoding)
    assert (answer.status, answer.error["code"]) == (400, "BadRequest")
    assert parts.counted("rejected_total", reason="ratio_cap") == 1.0
    assert len(parts.dispatcher.asked) == 1
    damaged = pack(json.dumps(SIGN).encode())[:-3]
    assert (await parts.ask(body=damaged, content_encoding=encoding)).error["code"] == "BadRequest"
    assert (await parts.ask(body=b"junk", content_encoding=encoding)).error["code"] == "BadRequest"
    twice = pack(json.dumps(SIGN).encode()) * 2
    assert (await parts.ask(body=twice, content_encoding=encoding)).error["code"] == "BadRequest"


async def test_what_inflates_beyond_the_body_limit_is_413_and_counted():
    parts = EdgeParts(SIGNED)
    parts.set("limits", max_body_bytes=2048, decompress_ratio_cap=1000)
    answer = await parts.ask(body=gzip.compress(json.dumps(SIGN).encode().ljust(4000)), content_encoding="gzip")
    assert (answer.status, answer.error["code"]) == (413, "TooLarge")
    assert parts.counted("rejected_total", reason="decompress_cap") == 1.0


async def test_a_peer_that_goes_away_is_answered_by_nothing_and_counted():
    parts = EdgeParts(SIGNED)
    assert (await parts.ask(chunks=[])).status == 0
    assert parts.counted("http_requests_total", route="/v1/kms/sign", method="POST", status="499") == 1.0
    assert parts.counted("inflight_requests", route="/v1/kms/sign") == 0.0


async def test_bodies_under_way_are_bounded_for_all_requests_together():
    parts, begun, done = EdgeParts(SIGNED), asyncio.Event(), asyncio.Event()

    async def hold(_request):
        begun.set()
        await done.wait()
        return SIGNED

    parts.dispatcher.answer = hold
    parts.calls.bodies = BodyBudget(10_000)
    first = asyncio.create_task(parts.ask(body=json.dumps(SIGN).encode().ljust(6000)))
    await begun.wait()
    refused = await parts.ask(chunks=[b" " * 2500, b" " * 2500, json.dumps(SIGN).encode()])
    assert (refused.status, refused.error["code"], refused.reads) == (429, "Backpressure", 2)
    assert refused.headers["retry-after"] == "1"
    assert parts.counted("rejected_total", reason="body_budget") == 1.0
    small = asyncio.create_task(parts.ask(body=json.dumps(SIGN).encode().ljust(4000)))
    done.set()
    assert [(await each).status for each in (first, small)] == [200, 200]
    assert parts.calls.bodies.taken_bytes == 0


async def test_what_a_body_inflates_to_is_under_way_too():
    parts = EdgeParts(SIGNED)
    packed = gzip.compress(json.dumps(SIGN).encode().ljust(1000))
    for budget_bytes, status in ((1000 + len(packed), 200), (999 + len(packed), 429)):
        parts.calls.bodies = BodyBudget(budget_bytes)
        assert (await parts.ask(body=packed, content_encoding="gzip")).status == status
        assert parts.calls.bodies.taken_bytes == 0


@pytest.mark.parametrize(
    ("answer", "rest", "status"),
    [
        (SIGNED, {"body": SIGN}, 200),
        (SIGNED, {"body": b"not json"}, 400),
        (SIGNED, {"body": b"junk", "content_encoding": "gzip"}, 400),
        (SIGNED, {"chunks": [b" " * 65_536] * 20}, 413),
        (errors.Timeout("m"), {"body": SIGN}, 504),
        (ZeroDivisionError(), {"body": SIGN}, 500),
        (asyncio.CancelledError(), {"body": SIGN}, None),
    ],
    ids=["answered", "not-json", "not-gzip", "too-large", "refused", "a-fault", "given-up"],
)
async def test_however_a_request_ends_its_body_is_no_longer_under_way(answer, rest, status):
    parts = EdgeParts(answer)

    async def end(_request):
        assert parts.calls.bodies.taken_bytes > 0
        raise answer

    if not isinstance(answer, SignResponse):
        parts.dispatcher.answer = end
    if status is None:
        with pytest.raises(asyncio.CancelledError):
            await parts.ask(**rest)
    else:
        assert (await parts.ask(**rest)).status == status
    assert parts.calls.bodies.taken_bytes == 0


async def test_a_peer_that_goes_away_within_its_body_leaves_nothing_under_way():
    budget = BodyBudget(10)
    with budget.lease() as lease:
        pieces = iter([{"type": "http.request", "body": b"xxxx", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(pieces)

        with pytest.raises(Disconnected):
            await read_body(receive, 100, lease)
        assert budget.taken_bytes == 4
    assert budget.taken_bytes == 0


CASES = [
    (errors.Unauthenticated("m"), 401, "NoCapability", None),
    (errors.NoCapability("m"), 403, "NoCapability", None),
    (errors.NotFound("m"), 404, "NotFound", None),
    (errors.BadRequest("m"), 400, "BadRequest", None),
    (errors.ConflictingHead("m"), 422, "BadRequest", None),
    (errors.StoreUnavailable("m", retry_after_s=7), 503, "StoreUnavailable", "7"),
    (errors.StoreUnavailable("m"), 503, "StoreUnavailable", "1"),
    (errors.AttestationMissing("m"), 403, "AttestationMissing", "5"),
    (errors.Backpressure("m"), 429, "Backpressure", "1"),
    (errors.Timeout("m"), 504, "Timeout", "1"),
    (errors.Conflict("m"), 409, "Conflict", None),
    (errors.TooLarge("m"), 413, "TooLarge", None),
    (errors.Unsupported("m"), 400, "Unsupported", None),
    (errors.Internal("m"), 500, "Internal", None),
]


def test_the_cases_below_have_all_eleven_codes():
    assert {code for _, _, code, _ in CASES} == {code.value for code in ErrorCode}


@pytest.mark.parametrize(("error", "status", "code", "retry_after"), CASES, ids=lambda case: str(case))
async def test_the_envelope_is_stable(error, status, code, retry_after):
    error.hint = "do otherwise"
    parts = EdgeParts(error)
    answer = await parts.ask(body=SIGN)
    assert (answer.status, answer.headers.get("retry-after")) == (status, retry_after)
    envelope = answer.error
    assert list(answer.json) == ["error"]
    assert set(envelope) == {"code", "message", "retryable", "hint", "ts", "request_id"}
    assert (envelope["code"], envelope["message"], envelope["hint"]) == (code, "m", "do otherwise")
    assert envelope["retryable"] is (code in {"StoreUnavailable", "Backpressure", "Timeout"})
    assert envelope["ts"].endswith("Z")
    assert envelope["request_id"].startswith("r-")
    assert answer.headers["x-corr-id"]


async def test_whatever_is_not_understood_is_internal_and_says_nothing():
    parts = EdgeParts(RuntimeError("the passphrase is swordfish"))
    answer = await parts.ask(body=SIGN)
    assert (answer.status, answer.error["code"]) == (500, "Internal")
    lines = parts.lines()
    assert "swordfish" not in answer.body.decode() + json.dumps(lines)
    assert any(line["event"] == "internal" and "RuntimeError at" in line["trace"] for line in lines)
    assert answer.error["request_id"] in {line["request_id"] for line in lines}


async def test_while_it_drains_what_is_new_gets_503_with_retry_after():
    parts = EdgeParts(SIGNED)
    parts.calls.draining = True
    answer = await parts.ask(body=SIGN)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "StoreUnavailable", "1")


async def test_a_verdict_from_cached_keys_tells_their_age_twice():
    """G-9, I-18, I-19: the age in the body and in its field."""
    details = VerifyDetails(checked=["ed25519"])
    body = {"payload_b3": DIGEST, "sigs": [{"alg": "ed25519", "signature_b64": "AA=="}]}
    aged = EdgeParts(VerifyResponse(ok=True, details=details, cache_age_ms=742))
    answer = await aged.ask(path="/v1/kms/verify", body=body)
    assert (answer.headers["x-kms-cache-age"], answer.json["cache_age_ms"]) == ("742", 742)
    fresh = await EdgeParts(VerifyResponse(ok=True, details=details)).ask(path="/v1/kms/verify", body=body)
    assert "x-kms-cache-age" not in fresh.headers
    assert "cache_age_ms" not in fresh.json
    assert aged.lines()[-1]["cache_age_ms"] == 742


async def test_the_result_line_has_every_required_field_and_no_raw_kid():
    parts = EdgeParts(
        SignResponse(sigs=SIGNED.sigs, kid=KID, attestation=AttestationEvidence(class_="tpm-2.0", evidence="AA=="))
    )
    op_id = str(uuid.uuid4())
    await parts.ask(body=SIGN | {"op_id": op_id})
    [line] = parts.lines()
    assert list(line)[:9] == [
        *("ts", "level", "service", "event", "corr_id", "request_id", "peer_addr", "tenant", "route"),
    ]
    assert (line["event"], line["service"], line["level"], line["tenant"]) == ("sign_result", "ron-kms", "INFO", "core")
    assert (line["kid_version"], line["alg"], line["result"], line["op_id"]) == (3, "ed25519", "ok", op_id)
    assert line["payload_b3"] == DIGEST
    assert line["token_id"] == parts.authority.principal.token_id
    assert line["attestation_class"] == "tpm-2.0"
    assert len(line["kid_hash"]) == 8
    assert KID.partition("#")[0] not in json.dumps(line)
    assert "good" not in json.dumps(line)


async def test_at_lengths_not_even_the_digest_is_logged():
    parts = EdgeParts(SIGNED)
    parts.set("observability", redact_level="lengths")
    await parts.ask(body=SIGN)
    [line] = parts.lines()
    assert "payload_b3" not in line
    assert line["body_bytes"] == len(json.dumps(SIGN))


async def test_openapi_is_served_to_everyone():
    answer = await EdgeParts(SIGNED).ask("GET", "/v1/kms/openapi.json", authorization=None)
    assert answer.status == 200
    assert answer.json["openapi"].startswith("3.")


def test_an_empty_body_is_enough_where_every_member_is_optional():
    for op in ("rotate", "disable", "enable", "destroy"):
        assert decode_request(BY_OP[op], KID, b"", None).kid == KID
        assert decode_request(BY_OP[op], KID, b"{}", b"application/json").kid == KID
    with pytest.raises(errors.BadRequest, match="unknown field"):
        decode_request(BY_OP["rotate"], KID, b'{"kid":"other"}', b"application/json")
    with pytest.raises(errors.BadRequest, match=r"at \$\.kid"):
        decode_request(BY_OP["get_key"], "k" * 257, b"", None)


def test_a_response_leaves_out_what_is_not_set():
    import msgspec

    response = GetKeyResponse(kid=KID, alg="ed25519", versions=["#v1"], public=PublicMaterial(alg="e", pubkey_b64="A"))
    assert set(msgspec.to_builtins(response)) == {"kid", "alg", "versions", "public", "state", "min_version"}


async def test_a_cancelled_request_is_counted():
    started = asyncio.Event()

    async def hang(_request):
        started.set()
        await asyncio.Event().wait()

    parts = EdgeParts(hang)
    task = asyncio.create_task(parts.ask(body=SIGN))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert parts.counted("tasks_canceled_total", kind="request") == 1.0
    assert parts.counted("inflight_requests", route="/v1/kms/sign") == 0.0


def test_method_not_allowed_is_no_new_code():
    assert MethodNotAllowed("GET").code is ErrorCode.UNSUPPORTED
