"""§2, §5, §6 and §8: what an answer carries beside its reason, and what of an allowed request goes on."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

import base64
from typing import Any

from pch.reasons import ANSWERS, Reason
from tests.conformance.definitions.accepted import with_foreign
from tests.conformance.definitions.relaxed import PAIR, ahead, make
from tests.conformance.definitions.step import LINE, Case, Step, case, signed, unsigned
from tests.conformance.definitions.world import ED, EVERY, HYBRID, KEYS, M65, P256_HYBRID, challenge

OFFER, TOLD, PASSED, BUDGET, GRPC = "§2 Offer", "§5 Told", "§5 Passed", "§6 Told", "§8"
TITLES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 431: "Request Header Fields Too Large"}
NOT_FOR_403 = ("www-authenticate", "accept-signature", "retry-after", "pch-relax")


def offered(**changes: Any) -> dict[str, Any]:
    """What WWW-Authenticate says beside its challenge."""
    return {
        "realm": "signet", "algorithms": EVERY, "mode": "and", "binding": "tls-exporter", "max_age_s": 60,
        "evidence": "none", "hints": [],
    } | changes  # fmt: skip


def asked(*components: str, tags: tuple[str, ...] = ("pch",)) -> dict[str, Any]:
    """What Accept-Signature asks for, by label; its nonce is the challenge."""
    return {tag: {"components": [*LINE, *components], "tag": tag, "created": True, "expires": True} for tag in tags}


def refused(
    reason: Reason, *, absent: tuple[str, ...] = (), content: bool = True, **more: Any
) -> dict[str, Any]:  # fmt: skip
    """What every refusal carries, and what it must not."""
    status = ANSWERS[reason].status
    fields = {"pch-reason": str(reason), "cache-control": "no-store", "content-type": "application/problem+json"}
    problem = {"title": TITLES[status], "status": status, "reason": str(reason)} if content else None
    return {"fields": fields, "absent": list(absent), "problem": problem} | more


def telling(rule: str, title: str, reason: Reason, step: Step, **more: Any) -> Case:
    """A refusal and all that it says."""
    return case(rule, title, str(reason), step.but(answer=refused(reason, **more)))


def passed(rule: str, title: str, step: Step, *, absent: tuple[str, ...] = (), **fields: str) -> Case:
    """A pass, and what goes on: `fields` as the app has them (with `_` for `-`), `absent` ones it does not have."""
    return case(rule, title, "allowed", step.but(answer=upstream(absent, fields)))


def upstream(absent: tuple[str, ...], fields: dict[str, str], content: bytes | None = None) -> dict[str, Any]:
    expected = {name.replace("_", "-"): value for name, value in fields.items()}
    goes_on: dict[str, Any] = {"fields": expected, "absent": list(absent)}
    if content is not None:
        goes_on["content_base64"] = base64.b64encode(content).decode()
    return {"upstream": goes_on}


MISSING, STALE = Reason.MISSING_SIGNATURE, Reason.STALE_CHALLENGE
OWN = ("pch-channel-binding", "signature", "signature-input")
BIG = unsigned().adding("x-big", "a" * 8_001)
WHOLE = make(PAIR, body=b"hello", target="/hybrid/a")
EMPTY = make("m65", body=b"")
CASES: tuple[Case, ...] = (
    telling(OFFER, "every algorithm that the route lists, in its order", MISSING, unsigned(), offer=offered(), accept_signature=asked("pch-channel-binding"), granted=False),
    telling(OFFER, "hybrids alone: a second member, too", MISSING, unsigned("/hybrid/a"), offer=offered(algorithms=[HYBRID, P256_HYBRID]), accept_signature=asked("pch-channel-binding", tags=("pch", "pch-pq"))),
    telling(OFFER, "hybrids and others: one member", MISSING, unsigned("/either"), offer=offered(mode="or", algorithms=[HYBRID, ED, M65]), accept_signature=asked("pch-channel-binding")),
    telling(OFFER, "mode pq_only", MISSING, unsigned("/pq"), offer=offered(mode="pq_only", algorithms=[M65, HYBRID])),
    telling(OFFER, "a route without binding", MISSING, unsigned("/unbound/a"), offer=offered(binding="none"), accept_signature=asked()),
    telling(OFFER, "a route that requires evidence", MISSING, unsigned("/evidence"), offer=offered(evidence="required", algorithms=["ed25519", "ecdsa-p256-sha256"])),
    telling(OFFER, "a request that had content", MISSING, unsigned(method="POST", body=b"hello", headers=(("content-length", b"5"),)), accept_signature=asked("content-digest", "pch-channel-binding")),
    telling(OFFER, "a proof that does not hold is answered alike", Reason.BAD_SIGNATURE, signed().flipped(), offer=offered(), accept_signature=asked("pch-channel-binding"), granted=False),
    telling(OFFER, "the grant of a challenge that was not good is not handed on", STALE, signed(nonce=challenge(realm="signets", relax_grant=True)), granted=False),
    telling(TOLD, "a HEAD has no content", MISSING, unsigned(method="HEAD"), content=False, offer=offered()),
    telling(TOLD, "403 carries no offer", Reason.ALG_NOT_ALLOWED, signed(target="/p256"), absent=NOT_FOR_403, granted=False),
    telling(TOLD, "no binding: nothing to sign is given", Reason.BINDING_MISSING, unsigned(binding=None), absent=(*NOT_FOR_403, "pch-challenge")),
    telling(TOLD, "no route: nothing to sign is given", Reason.NO_ROUTE, unsigned("/nowhere"), absent=(*NOT_FOR_403, "pch-challenge")),
    telling(TOLD, "an ambiguous path", Reason.AMBIGUOUS_PATH, unsigned("/protected/%2e"), absent=(*NOT_FOR_403, "pch-challenge")),
    telling(TOLD, "a refusal after the proof brings fresh challenges", Reason.POLICY_DENIED, signed("bob", target="/alice"), absent=NOT_FOR_403, granted=False),
    telling(BUDGET, "over the budget: an offer to relax, and the grant", Reason.HEADER_BUDGET, BIG, offer=offered(), relax="evidence=body", granted=True),
    telling(BUDGET, "over the budget where nothing relaxes", Reason.HEADER_TOO_LARGE, BIG.but(target="/plain"), absent=NOT_FOR_403, granted=False),
    telling(BUDGET, "over the hard cap", Reason.HEADER_TOO_LARGE, unsigned().adding("x-big", "a" * 50_000), absent=NOT_FOR_403),
    passed(PASSED, "who it was, and by what", signed(), x_signet_subject="alice", x_signet_key_id=KEYS["alice"].key_id, x_signet_alg="ed25519", x_signet_binding="tls-exporter", absent=OWN),
    passed(PASSED, "of a hybrid both keys and both algorithms", signed(PAIR, target="/hybrid/a"), x_signet_subject="alice", x_signet_key_id="+".join(KEYS[name].key_id for name in PAIR), x_signet_alg=HYBRID, absent=OWN),
    passed(PASSED, "on a route without binding", signed(target="/unbound/a", sent_binding=None), x_signet_binding="none", absent=OWN),
    passed(PASSED, "what is already there is overwritten", signed().adding("x-signet-subject", "root").adding("x-signet-alg", "none"), x_signet_subject="alice", x_signet_alg="ed25519", absent=OWN),
    passed(PASSED, "fields of this protocol end here, known or not", signed().adding("pch-later", "x").adding("pch-challenge", '"x"'), absent=(*OWN, "pch-later", "pch-challenge")),
    passed(PASSED, "another protocol's signature stays", with_foreign(signed(), first=True), signature="other=:AAAA:", signature_input='other=("@method");created=1;tag="other"', absent=("pch-channel-binding",)),
    passed(PASSED, "other fields stay as they are", signed(headers=(("x-note", b"n"),), cover=("x-note",)).adding("x-more", "m"), x_note="n", x_more="m"),
    case("§6 Passed", "the content without its envelope, and its length", "allowed", WHOLE.step.but(answer=upstream((*OWN, "pch-relaxed", "pch-evidence-digest"), {"content-length": "5", "x-signet-alg": HYBRID}, b"hello"))),
    Case("§6 Passed", "an envelope that was sent ahead leaves nothing in the header", ((ahead(EMPTY), "evidence_kept"), (EMPTY.step.but(answer=upstream((*OWN, "pch-relaxed", "pch-evidence-digest"), {"x-signet-alg": M65}, b"")), "allowed"))),
    *(case(GRPC, f"{reason} is told as {ANSWERS[reason].grpc_status}", str(reason), step.adding("content-type", "application/grpc").but(answer={"fields": {"grpc-status": str(ANSWERS[reason].grpc_status), "pch-reason": str(reason)}, "absent": [], "problem": None})) for reason, step in (
        (MISSING, unsigned()),
        (Reason.ALG_NOT_ALLOWED, signed(target="/p256")),
        (Reason.AMBIGUOUS_PATH, unsigned("/protected/%2e")),
        (Reason.HEADER_BUDGET, BIG),
        (Reason.BODY_TOO_LARGE, unsigned("/small", method="POST", body=b"123456789", headers=(("content-length", b"9"),))),
    )),
)  # fmt: skip
