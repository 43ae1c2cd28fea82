"""§2, §3, §5, §9 from the client's side: what it signs, which challenges it reads, what it does with an answer."""

from __future__ import annotations

import base64
from typing import Any

from pch.reasons import ANSWERS, Reason
from tests.conformance.definitions.step import Step, signature_bases_of, signed
from tests.conformance.definitions.world import AUTHORITY, BINDING, KEYS, NOW_S, challenge

SAFE = ("GET", "HEAD", "PUT", "DELETE")
SIGN_AGAIN = (
    Reason.MISSING_SIGNATURE, Reason.MALFORMED_SIGNATURE, Reason.STALE_CHALLENGE, Reason.BAD_SIGNATURE,
    Reason.UNKNOWN_KEY, Reason.EXPIRED_SIGNATURE, Reason.MISSING_COMPONENT,
)  # fmt: skip


def sign_case(title: str, keys: tuple[str, ...] = ("alice",), **given: Any) -> dict[str, Any]:
    """What a client is given, and the fields it has to send. ECDSA and ML-DSA signatures differ each time."""
    nonce = challenge(binding=BINDING)
    bound = given.pop("bound", True)
    target, method, body = given.pop("target", "/protected"), given.pop("method", "GET"), given.pop("body", b"")
    headers = given.pop("headers", ())
    cover = given.pop("cover", ())
    made: Step = signed(
        keys[0] if len(keys) == 1 else (keys[0], keys[1]), target=target, method=method, body=body, nonce=nonce,
        sent_binding=BINDING if bound else None, headers=headers, cover=cover, lifetime_s=30,
    )  # fmt: skip
    reproducible = all(KEYS[key].algorithm == "ed25519" for key in keys)
    own = {"pch-channel-binding", "content-digest", "signature-input"} | ({"signature"} if reproducible else set())
    return {
        "kind": "sign",
        "rule": "§3",
        "title": title,
        "given": {
            "keys": list(keys),
            "challenge": nonce,
            "binding_hex": BINDING.hex() if bound else None,
            "created_s": NOW_S,
            "max_age_s": 60,
            "request": {
                "method": method,
                "scheme": "https",
                "authority": AUTHORITY,
                "target": target,
                "headers": [[name, value.decode("latin-1")] for name, value in headers],
                "body_base64": base64.b64encode(body).decode(),
            },
            "cover": list(cover),
        },
        "expect": {
            "fields": {name: value.decode() for name, value in made.headers if name in own},
            "signature_bases": signature_bases_of(made.message),
        },
    }


SIGN = (
    sign_case("a plain GET"),
    sign_case("a query", target="/protected/x?a=1&b=%2F"),
    sign_case("content", method="POST", body=b"hello"),
    sign_case("a route without binding", target="/unbound/a", bound=False),
    sign_case(
        "content on a route without binding", target="/unbound/a", method="PUT", body=bytes(range(256)), bound=False
    ),
    sign_case("a further field", headers=(("x-note", b"n"),), cover=("x-note",)),
    sign_case("a field of two lines", headers=(("x-list", b"a"), ("x-list", b" b ")), cover=("x-list",)),
    sign_case("ecdsa-p256-sha256", ("p256",)),
    sign_case("ml-dsa-44", ("m44",)),
    sign_case("ml-dsa-65", ("m65",)),
    sign_case("ml-dsa-87", ("m87",)),
    sign_case("ed25519+ml-dsa-65", ("hybrid", "hybrid-pq")),
    sign_case("ed25519+ml-dsa-65 with content", ("hybrid", "hybrid-pq"), method="POST", body=b"hello"),
    sign_case("ecdsa-p256-sha256+ml-dsa-65", ("curve", "curve-pq"), target="/hybrid/a"),
)

GOOD = challenge()
PARAMS = {
    "realm": "signet",
    "challenge": GOOD,
    "algs": "ed25519 ml-dsa-65 ed25519+ml-dsa-65",
    "mode": "and",
    "binding": "tls-exporter",
    "evidence": "none",
}


def offer(scheme: str = "PCH", **changes: str | None) -> str:
    """Write a WWW-Authenticate field; None drops a parameter."""
    params = {name: value for name, value in (PARAMS | changes).items() if value is not None}
    return f"{scheme} " + ", ".join(f'{name}="{value}"' for name, value in params.items()) + ", max-age=60"


def offered(**changes: Any) -> dict[str, Any]:
    """What a client reads out of `offer`."""
    return {
        "realm": "signet", "challenge": GOOD, "algorithms": PARAMS["algs"].split(), "mode": "and",
        "binding": "tls-exporter", "max_age_s": 60, "evidence": "none", "hints": [],
    } | changes  # fmt: skip


def read(title: str, lines: list[str], expect: dict[str, Any] | str | None) -> dict[str, Any]:
    """A WWW-Authenticate field: what it offers, `refused`, or null for no PCH challenge at all."""
    return {"kind": "www-authenticate", "rule": "§2", "title": title, "lines": lines, "expect": expect}


def pooled(title: str, lines: list[str], expect: list[str] | str) -> dict[str, Any]:
    return {"kind": "pch-challenge", "rule": "§5", "title": title, "lines": lines, "expect": expect}


MANY = [challenge() for _ in range(9)]
REFUSED = "refused"
CHALLENGES = (
    read("as a verifier writes it", [offer()], offered()),
    read("hints", [offer(hints="relax-header-budget")], offered(hints=["relax-header-budget"])),
    read("mode or", [offer(mode="or")], offered(mode="or")),
    read("mode pq_only", [offer(mode="pq_only", algs="ml-dsa-65")], offered(mode="pq_only", algorithms=["ml-dsa-65"])),
    read("binding none", [offer(binding="none")], offered(binding="none")),
    read("the scheme in lower case", [offer("pch")], offered()),
    read("behind another scheme", ['Basic realm="a, b", ' + offer()], offered()),
    read("in front of another scheme", [offer() + ', Bearer realm="x"'], offered()),
    read("on a line of its own", ["Negotiate", offer()], offered()),
    read("an unknown parameter", [offer(later="x")], offered()),
    read("only other schemes", ['Bearer realm="x"'], None),
    read("no field", [], None),
    read("two PCH challenges", [offer(), offer()], REFUSED),
    *(read(f"without {name}", [offer(**{name: None})], REFUSED) for name in PARAMS),
    read("without max-age", [offer().replace(", max-age=60", "")], REFUSED),
    read("max-age of zero", [offer().replace("max-age=60", "max-age=0")], REFUSED),
    read("max-age that is no number", [offer().replace("max-age=60", "max-age=soon")], REFUSED),
    read("an unknown mode", [offer(mode="xor")], REFUSED),
    read("an unknown binding", [offer(binding="tls-unique")], REFUSED),
    read("an unknown evidence", [offer(evidence="maybe")], REFUSED),
    read("a parameter twice", [offer() + ', mode="or"'], REFUSED),
    read("a challenge of 59 characters", [offer(challenge=GOOD[:-1])], REFUSED),
    read("a challenge with padding", [offer(challenge=GOOD[:-1] + "=")], REFUSED),
    read("an open quote", [offer()[:-30] + '"'], REFUSED),
    pooled("one", [f'"{MANY[0]}"'], MANY[:1]),
    pooled("eight", [", ".join(f'"{each}"' for each in MANY[:8])], MANY[:8]),
    pooled("on two lines", [f'"{MANY[0]}"', f'"{MANY[1]}"'], MANY[:2]),
    pooled("none", [], []),
    pooled("nine", [", ".join(f'"{each}"' for each in MANY)], REFUSED),
    pooled("one twice", [f'"{MANY[0]}", "{MANY[0]}"'], REFUSED),
    pooled("without quotes", [MANY[0]], REFUSED),
    pooled("a comma at the end", [f'"{MANY[0]}",'], REFUSED),
)


def answer(reason: Reason, method: str, action: str, **more: Any) -> dict[str, Any]:
    """What a client does once its signed request got this answer, with a fresh challenge where one is given."""
    return {
        "kind": "answer",
        "rule": "§5",
        "title": f"{reason} to a signed {method}" + (", once more" if more.get("already_again") else ""),
        "given": {
            "method": method,
            "status": ANSWERS[reason].status,
            "reason": str(reason),
            "challenge": ANSWERS[reason].challenge,
        }
        | more,
        "expect": action,
    }


TOLD = tuple(reason for reason in ANSWERS if reason is not Reason.HEADER_BUDGET)
"""header_budget is answered by relaxing (§6), which is another exchange."""
ANSWERED = (
    *(answer(reason, method, "sign again") for reason in SIGN_AGAIN for method in ("GET", "POST")),
    *(answer(reason, "GET", "give up", already_again=True) for reason in SIGN_AGAIN),
    *(answer(Reason.NONCE_REPLAY, method, "sign again") for method in SAFE),
    *(answer(Reason.NONCE_REPLAY, method, "give up") for method in ("POST", "PATCH")),
    *(
        answer(reason, "GET", "give up")
        for reason in TOLD
        if reason not in SIGN_AGAIN and reason is not Reason.NONCE_REPLAY
    ),
)
