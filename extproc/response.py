"""Turn an answer into Envoy's CheckResponse; every Envoy quirk of this direction lives here.

An empty CheckResponse or a denied response without a status would let the request through (Envoy 1.40), so every
answer leaves through `serialise`, which turns what is neither a whole pass nor a whole refusal into a refusal. A pass
carries dynamic metadata that says so, and Envoy's configuration lets nothing through without it.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from extproc.body_order import ORDER_HEADER, ORDERED
from pch.httpsig.accept_signature import make_signature_request, serialise_accept_signature
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import serialise_signature_input
from pch.proof import FIELD_PREFIX, REQUEST_LINE_COMPONENTS, TAG, TAG_SECOND_HALF
from pch.reasons import ANSWERS, Reason
from pch.relaxed import RELAX_EVIDENCE_IN_BODY, RELAX_FIELD, RELAX_HINT

if TYPE_CHECKING:
    from collections.abc import Collection

    from extproc.decision import Answer
    from extproc.route import Route
    from extproc.verifier import VerifiedRequest

LOG: Final = logging.getLogger("signet.response")
DECISION_KEY: Final = "decision"
DECISION_ALLOW: Final = "allow"
RECEIPT_KEY: Final = "receipt"
"""Dynamic metadata of a pass, under envoy.filters.http.ext_authz. The RBAC filter of envoy.yaml asks for the decision,
the access log service gives the receipt's id back."""
PROBLEM_TYPE: Final = "application/problem+json"
OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
APPEND: Final = HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
NO_CONTENT: Final = 204
"""The one status below 400 with which a Check is denied: the verifier answers by itself that it took an envelope in."""
_IDENTITY_PREFIX: Final = "x-signet-"
_GRPC_OK: Final = 0
_GRPC_PERMISSION_DENIED: Final = 7
_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def check_response(answer: Answer) -> CheckResponse:
    """Build what Envoy is told, PCH §5 (step 13)."""
    if answer.verified is not None and _may_pass(answer):
        return _allowed(answer, answer.verified)
    if answer.reason is Reason.UNGUARDED and answer.admitted is not None and not answer.admitted.route.guarded:
        metadata = _pass_metadata(answer, route=answer.admitted.route.name)
        passed = OkHttpResponse(headers_to_remove=_claimed_identity(answer, ()))
        return CheckResponse(status=Status(code=_GRPC_OK), ok_response=passed, dynamic_metadata=metadata)
    if answer.reason is Reason.EVIDENCE_KEPT and answer.admitted is None:
        return _kept()
    return _denied(answer)


def _may_pass(answer: Answer) -> bool:
    """Tell whether the request goes on: with its body checked and nothing before it, or to ext_proc and no further."""
    if answer.reason is Reason.ALLOWED:
        return answer.order is not None or answer.admitted is None or not answer.admitted.envelope_bytes
    return answer.reason is Reason.BODY_PENDING and answer.order is not None


def _kept() -> CheckResponse:
    """Say that an envelope is kept, PCH §6: an answer of ours, which is no pass."""
    return CheckResponse(
        status=Status(code=_GRPC_PERMISSION_DENIED, message=str(Reason.EVIDENCE_KEPT)),
        denied_response=DeniedHttpResponse(
            status=HttpStatus(code=NO_CONTENT), headers=[_option("cache-control", "no-store", APPEND)]
        ),
    )


def serialise(response: CheckResponse) -> bytes:
    """Write `response` for the wire; whatever Envoy could take for a pass that was not decided goes as a refusal."""
    if not _is_whole(response):
        LOG.error("an answer that is neither a pass nor a refusal was replaced by a refusal")
        response = refusal_without_request()
    return bytes(response.SerializeToString())


def _is_whole(response: object) -> bool:
    if not isinstance(response, CheckResponse):
        return False
    code, denied = int(response.status.code), int(response.denied_response.status.code)
    if response.WhichOneof("http_response") == "ok_response":
        said = str(response.dynamic_metadata.fields[DECISION_KEY].string_value)
        return code == _GRPC_OK and said == DECISION_ALLOW
    return code != _GRPC_OK and (400 <= denied <= 599 or denied == NO_CONTENT)


def _option(name: str, value: str, action: int = OVERWRITE) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=action)


def _allowed(answer: Answer, verified: VerifiedRequest) -> CheckResponse:
    route = verified.admitted.route
    headers = [
        _option("x-signet-subject", verified.key.subject),
        _option("x-signet-key-id", verified.key_ids),
        _option("x-signet-alg", verified.algorithm),
        _option("x-signet-binding", route.binding),
        _option("x-signet-receipt", answer.receipt_id or ""),
    ]
    if answer.order is not None:
        headers.append(_option(ORDER_HEADER, ORDERED))
    fields = {name for name, _ in answer.request.message.headers}
    removed = [name for name in fields if name.startswith(FIELD_PREFIX)]
    removed += _claimed_identity(answer, [option.header.key for option in headers])
    if verified.foreign:
        inputs = {label: params for label, (params, _) in verified.foreign.items()}
        signatures = {label: signature for label, (_, signature) in verified.foreign.items()}
        headers.append(_option("signature-input", serialise_signature_input(inputs)))
        headers.append(_option("signature", serialise_signature(signatures)))
    else:
        removed += ["signature-input", "signature"]
    return CheckResponse(
        status=Status(code=_GRPC_OK),
        ok_response=OkHttpResponse(
            headers=headers,
            headers_to_remove=removed,
            response_headers_to_add=_response_headers(answer, "private"),
        ),
        dynamic_metadata=_pass_metadata(
            answer,
            route=route.name,
            subject=verified.key.subject,
            **({} if answer.order is None else answer.order.facts()),
        ),
    )


def _claimed_identity(answer: Answer, written: Collection[str]) -> list[str]:
    """Name the client's own `x-signet-*` fields, so that the app sees none even if the edge forgot to drop them.

    Without those in `written`: Envoy removes after it sets, so naming one would take away what the verifier says.
    """
    fields = {name for name, _ in answer.request.message.headers}
    return sorted(name for name in fields if name.startswith(_IDENTITY_PREFIX) and name not in written)


def _pass_metadata(answer: Answer, **facts: str) -> Struct:
    """Say that the request may pass, and by which receipt: the access log brings that back with how it ended."""
    metadata = Struct()
    metadata.update({DECISION_KEY: DECISION_ALLOW, **facts})
    if answer.receipt_id is not None:
        metadata.update({RECEIPT_KEY: answer.receipt_id})
    return metadata


def _response_headers(answer: Answer, cache_control: str) -> list[HeaderValueOption]:
    """Headers that go back to the client with any answer to a guarded request.

    Cache-Control is appended: with several directives the most restrictive holds (RFC 9111 §4.2.1), so an app's
    stricter one stays in force.
    """
    headers = [_option("cache-control", cache_control, APPEND)]
    if answer.challenges:
        headers.append(_option("pch-challenge", ", ".join(f'"{each}"' for each in answer.challenges)))
    if answer.receipt_id is not None:
        headers.append(_option("pch-receipt", f'"{answer.receipt_id}"'))
    return headers


def _denied(answer: Answer) -> CheckResponse:
    reason = answer.reason if answer.reason in ANSWERS else Reason.INTERNAL
    rule = ANSWERS[reason]
    headers = _response_headers(answer, "no-store")
    headers.append(_option("pch-reason", str(reason)))
    if rule.retry_after:
        headers.append(_option("retry-after", str(answer.retry_after_s or answer.rules.config.filter.retry_after_s)))
    if rule.challenge and answer.challenges and answer.admitted is not None:
        route, realm = answer.admitted.route, answer.rules.config.filter.realm
        max_age_s = answer.rules.config.filter.max_age_s
        challenge = answer.challenges[0]
        offer = www_authenticate(
            route, realm, challenge, max_age_s, relaxing=answer.relaxing, may_fall_back=answer.may_fall_back
        )
        headers.append(_option("www-authenticate", offer))
        asked = accept_signature(route, challenge, answer.request.has_content, may_fall_back=answer.may_fall_back)
        headers.append(_option("accept-signature", asked))
        if reason is Reason.HEADER_BUDGET:
            headers.append(_option(RELAX_FIELD, RELAX_EVIDENCE_IN_BODY))
    body = ""
    if answer.request.is_grpc:
        headers.append(_option("grpc-status", str(rule.grpc_status)))
        headers.append(_option("grpc-message", str(reason)))
    else:
        headers.append(_option("content-type", PROBLEM_TYPE))
        if answer.request.message.method != "HEAD":
            body = problem_document(reason)
    return CheckResponse(
        status=Status(code=_GRPC_PERMISSION_DENIED, message=str(reason)),
        denied_response=DeniedHttpResponse(status=HttpStatus(code=rule.status), headers=headers, body=body),
    )


def refusal_without_request() -> CheckResponse:
    """Build the refusal of a Check that could not be decoded: nothing is known but that it is not let through."""
    rule = ANSWERS[Reason.INTERNAL]
    headers = [_option("pch-reason", str(Reason.INTERNAL)), _option("content-type", PROBLEM_TYPE)]
    return CheckResponse(
        status=Status(code=_GRPC_PERMISSION_DENIED, message=str(Reason.INTERNAL)),
        denied_response=DeniedHttpResponse(
            status=HttpStatus(code=rule.status), headers=headers, body=problem_document(Reason.INTERNAL)
        ),
    )


def problem_document(reason: Reason) -> str:
    """Write the problem document of a refusal, RFC 9457 with the member `reason` (PCH §2)."""
    rule = ANSWERS[reason]
    document = {
        "type": f"urn:signet:reason:{reason}",
        "title": _TITLES[rule.status],
        "status": rule.status,
        "detail": rule.detail,
        "reason": str(reason),
    }
    return json.dumps(document)


def www_authenticate(
    route: Route, realm: str, challenge: str, max_age_s: int, *, relaxing: bool = False, may_fall_back: bool = False
) -> str:
    """Write the PCH challenge of a refusal, PCH §2. `realm` holds no quote (the configuration sees to it).

    `relaxing`: ask clients to relax at once (PCH §6). `may_fall_back`: the classical half of a hybrid is enough for now
    (PCH §3), so it is offered by itself as well.
    """
    halves = [name.partition("+")[0] for name in route.algorithms if "+" in name] if may_fall_back else []
    algorithms = " ".join(dict.fromkeys([*route.algorithms, *halves]))
    hints = f', hints="{RELAX_HINT}"' if relaxing else ""
    return (
        f'PCH realm="{realm}", challenge="{challenge}", algs="{algorithms}", mode="{route.mode}", '
        f'binding="{route.binding}", max-age={max_age_s}, evidence="{route.evidence}"{hints}'
    )


def accept_signature(
    route: Route,
    challenge: str,
    has_content: bool,  # noqa: FBT001
    *,
    may_fall_back: bool = False,
) -> str:
    """Write Accept-Signature for generic signers, RFC 9421 §5 and PCH §2.

    Every member has to be fulfilled, so the other half of a hybrid is asked for only where no one gets by without it.
    """
    names = [*REQUEST_LINE_COMPONENTS]
    if has_content:
        names.append("content-digest")
    if route.bound:
        names.append("pch-channel-binding")
    tags = (TAG, TAG_SECOND_HALF) if route.hybrids_alone and not may_fall_back else (TAG,)
    return serialise_accept_signature({tag: make_signature_request(names, nonce=challenge, tag=tag) for tag in tags})
