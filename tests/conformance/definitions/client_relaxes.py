"""§3, §6 and §7 from the client's side: where evidence and ML-DSA signatures go, and what a 431 is answered with."""

from __future__ import annotations

import base64
from typing import Any

from pch.reasons import ANSWERS, Reason
from tests.conformance.definitions.client import sign_case
from tests.conformance.definitions.evidence import LEAST, field
from tests.conformance.definitions.relaxed import PAIR, make
from tests.conformance.definitions.step import Step, signature_bases_of, signed
from tests.conformance.definitions.world import BINDING, KEYS, UNBOUND, challenge


def _case(title: str, keys: tuple[str, ...], made: Step, envelope: bytes | None, **given: Any) -> dict[str, Any]:
    """Rewrite a plain case: the request is given without the fields that the client adds."""
    plain = sign_case(title, keys, **given)
    nonce = made.field("signature-input").partition('nonce="')[2][:60]
    own = {"pch-evidence", "pch-relaxed", "pch-evidence-digest", *plain["expect"]["fields"]}
    fields = {name: value.decode() for name, value in made.headers if name in own}
    reproducible = all(KEYS[key].algorithm == "ed25519" for key in keys)
    return plain | {
        "rule": "§7" if envelope is None else "§6",
        "expect": {
            "fields": fields,
            "envelope_base64": base64.b64encode(envelope).decode() if envelope and reproducible else None,
            "signature_bases": signature_bases_of(made.message),
        },
        "given": plain["given"] | {"challenge": nonce, "relax": envelope is not None},
    }


def inline(title: str, keys: tuple[str, ...] = ("alice",), *, body: bytes = b"") -> dict[str, Any]:
    """Evidence in the header."""
    key = keys[0] if len(keys) == 1 else (keys[0], keys[1])
    made = signed(key, body=body, method="PUT", headers=field(LEAST), cover=("pch-evidence",), lifetime_s=30)
    case = _case(title, keys, made, None, body=body, method="PUT")
    case["given"]["evidence_base64"] = base64.b64encode(LEAST).decode()
    return case


def relaxed(
    title: str, keys: tuple[str, ...] = ("alice",), *, body: bytes = b"", evidence: bytes | None = LEAST,
    bound: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The relaxed form of a request."""
    key = keys[0] if len(keys) == 1 else (keys[0], keys[1])
    made = make(
        key, body=body, method="PUT", evidence=evidence, lifetime_s=30, sent_binding=BINDING if bound else None,
        nonce=challenge(binding=BINDING if bound else UNBOUND, relax_grant=True),
    )  # fmt: skip
    case = _case(title, keys, made.step, made.envelope, body=body, method="PUT", bound=bound)
    case["given"]["evidence_base64"] = None if evidence is None else base64.b64encode(evidence).decode()
    return case


SIGN = (
    inline("evidence in the header"),
    inline("evidence in the header, with content", body=b"hello"),
    inline("evidence in the header of a hybrid", PAIR),
    relaxed("evidence before the content", body=b"hello"),
    relaxed("evidence ahead of a request without content"),
    relaxed("an ML-DSA signature before the content", ("m65",), body=b"hello", evidence=None),
    relaxed("an ML-DSA signature and evidence before the content", ("m65",), body=b"hello"),
    relaxed("an ML-DSA signature ahead", ("m87",), evidence=None),
    relaxed("a hybrid: the ML-DSA half alone is moved", PAIR, body=b"hello"),
    relaxed("a hybrid ahead", ("curve", "curve-pq"), evidence=None),
    relaxed("before the content, on a route without binding", body=b"hello", bound=False),
)
"""`given` has `evidence_base64`, null for none, and `relax`."""


def told(
    title: str, action: str, *, evidence: bool = True, pch_relax: str | None = "evidence=body", **more: Any
) -> Any:
    """What a client does with a 431 to its signed GET."""
    reason = Reason.HEADER_BUDGET
    given = {
        "method": "GET",
        "status": ANSWERS[reason].status,
        "reason": str(reason),
        "challenge": True,
        "wanted": "optional",
    }
    carried = {"evidence_base64": base64.b64encode(LEAST).decode() if evidence else None, "pch_relax": pch_relax}
    return {"kind": "answer", "rule": "§6", "title": title, "given": given | carried | more, "expect": action}


ANSWERED = (
    told("over the budget, relaxing is offered", "relax"),
    told("over the budget, and there is nothing to relax", "give up", evidence=False),
    told("over the budget, and the route wants no evidence", "give up", wanted="none"),
    told("over the budget, relaxing is not offered", "give up", pch_relax=None),
    told("over the budget, something else is offered", "give up", pch_relax="evidence=header"),
    told("over the budget, no challenge comes with it", "give up", challenge=False),
    told("over the budget all the same", "give up", already_again=True),
)
"""`already_again`: it was relaxed once before, and is told the same. `wanted`: the challenge's `evidence`."""
