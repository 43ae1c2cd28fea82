"""Building blocks of the cases: a request as the edge hands it over, signed and then changed."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pch.httpsig.component import ComponentId
from pch.httpsig.content_digest import content_digest
from pch.httpsig.errors import HttpSigError
from pch.httpsig.message import RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import (
    SignatureParams,
    make_signature_params,
    parse_signature_input,
    serialise_signature_input,
)
from pch.proof import binding_header
from pch.reasons import ANSWERS, Reason
from tests.conformance.definitions.world import AUTHORITY, BINDING, KEYS, NOW_MS, NOW_S, SIGNERS, UNBOUND, challenge

LINE = ("@method", "@authority", "@path", "@query")
BOUND = (*LINE, "pch-channel-binding")
Covered = Sequence[str | ComponentId]


@dataclass(frozen=True)
class Step:
    """One request. `binding`: what the edge vouches for. `stream`, `instance`: whose Check it is (PCH §4 step 9).

    `answer`: what the case says of the answer beside its reason, None for nothing. `not_closed`: routes whose breakers
    are not closed.
    """

    method: str = "GET"
    target: str = "/protected"
    authority: str = AUTHORITY
    scheme: str = "https"
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    binding: bytes | None = BINDING
    stream: str = "stream-1"
    instance: str = "edge-1"
    at_ms: int = NOW_MS
    signer: str | None = None
    answer: dict[str, Any] | None = None
    not_closed: tuple[str, ...] = ()

    @property
    def message(self) -> RequestMessage:
        """The request as RFC 9421 sees it."""
        return RequestMessage(self.method, self.scheme, self.authority, self.target, self.headers)

    def but(self, **changes: Any) -> Step:
        """Change attributes."""
        return dataclasses.replace(self, **changes)

    def field(self, name: str) -> str:
        """Give a field's first line."""
        return next(value for field, value in self.headers if field == name).decode("latin-1")

    def having(self, name: str, value: str | bytes | None) -> Step:
        """Replace or, with None, drop every line of a field."""
        kept = tuple(line for line in self.headers if line[0] != name)
        return self.but(headers=kept if value is None else (*kept, (name, _bytes(value))))

    def adding(self, name: str, value: str | bytes) -> Step:
        """Add a line at the end."""
        return self.but(headers=(*self.headers, (name, _bytes(value))))

    def editing(self, name: str, old: str, new: str) -> Step:
        """Replace text in a field; it has to be there."""
        value = self.field(name)
        assert old in value, (old, value)
        return self.having(name, value.replace(old, new))

    def param(self, old: str, new: str) -> Step:
        """Replace text in Signature-Input."""
        return self.editing("signature-input", old, new)

    def flipped(self, label: str = "pch") -> Step:
        """Change one character of a signature."""
        value = self.field("signature")
        place = value.index(f"{label}=:") + len(label) + 12
        return self.having("signature", value[:place] + ("A" if value[place] != "A" else "B") + value[place + 1 :])


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")


def unsigned(target: str = "/protected", method: str = "GET", **changes: Any) -> Step:
    """A request without a proof."""
    return Step(method=method, target=target, **changes)


def request(
    *, method: str | None, target: str, authority: str, scheme: str, body: bytes,
    headers: tuple[tuple[str, bytes], ...], sent_binding: bytes | None, digest: str | None,
) -> tuple[RequestMessage, list[str]]:  # fmt: skip
    """The request with the fields that a proof needs, and what it has to cover."""
    fields, covered = list(headers), list(LINE)
    if body or digest is not None:
        if body:
            fields.append(("content-length", str(len(body)).encode()))
        fields.append(("content-digest", (digest or content_digest(body)).encode()))
        covered.append("content-digest")
    if sent_binding is not None:
        fields.append(("pch-channel-binding", binding_header(sent_binding)))
        covered.append("pch-channel-binding")
    verb = method or ("POST" if body else "GET")
    return RequestMessage(verb, scheme, authority, target, tuple(fields)), covered


def signed(
    key: str | tuple[str, str] = "alice", *, target: str = "/protected", method: str | None = None,
    authority: str = AUTHORITY, scheme: str = "https", headers: tuple[tuple[str, bytes], ...] = (), body: bytes = b"",
    binding: bytes | None = BINDING, sent_binding: bytes | None = BINDING, nonce: str | None = None,
    components: Covered | None = None, cover: Covered = (), created_in_s: int = 0, lifetime_s: int = 60,
    digest: str | None = None, labels: tuple[str, str] = ("pch", "pch-pq"), tags: tuple[str, str] = ("pch", "pch-pq"),
    second: dict[str, Any] | None = None, **params: Any,
) -> Step:  # fmt: skip
    """Sign as PCH §3 wants it, by one key or the two of a hybrid.

    `params` replace signature parameters (None drops one), `second` those of the other half, `components` there too.
    """
    message, required = request(
        method=method, target=target, authority=authority, scheme=scheme, headers=headers, body=body,
        sent_binding=sent_binding, digest=digest,
    )  # fmt: skip
    covered: Covered = [*required, *cover] if components is None else components
    sealed = nonce or challenge(
        authority=authority.lower(), binding=binding if sent_binding is not None and binding else UNBOUND
    )
    inputs: dict[str, SignatureParams] = {}
    signatures: dict[str, bytes] = {}
    for place, name in enumerate((key,) if isinstance(key, str) else key):
        own = dict(second or {}) if place else {}
        parts = own.pop("components", covered)
        values = {
            "created": NOW_S + created_in_s,
            "expires": NOW_S + created_in_s + lifetime_s,
            "keyid": KEYS[name].key_id,
            "alg": KEYS[name].algorithm,
            "nonce": sealed,
            "tag": tags[place],
        } | params | own  # fmt: skip
        label = labels[place]
        inputs[label] = make_signature_params(parts, **values)
        # Not by pch.httpsig.sign: a case may claim another algorithm than its key has.
        signatures[label] = SIGNERS[name].sign(signature_base(message, inputs[label]))
    fields = (
        ("signature-input", serialise_signature_input(inputs).encode()),
        ("signature", serialise_signature(signatures).encode()),
    )
    return Step(
        message.method, target, authority, scheme, (*message.headers, *fields), body, binding,
        signer=key if isinstance(key, str) else "+".join(key),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One conformance case for a verifier: requests in order, each with the reason of its answer."""

    rule: str
    title: str
    steps: tuple[tuple[Step, str], ...]


def case(rule: str, title: str, reason: str, step: Step | Callable[[], Step]) -> Case:
    """A case of one request."""
    return Case(rule, title, ((step if isinstance(step, Step) else step(), reason),))


def step_json(step: Step, reason: str) -> dict[str, Any]:
    """Write one step for cases/*.json."""
    allowed, kept = reason in {"allowed", "unguarded"}, reason == "evidence_kept"
    answer = None if allowed or kept else ANSWERS[Reason(reason)]
    expect: dict[str, Any] = {
        "decision": "allow" if allowed else "keep" if kept else "deny",
        "reason": reason,
        "status": 204 if kept else None if answer is None else answer.status,
        "challenge": answer is not None and answer.challenge,
    }
    if reason == "allowed":
        names = (step.signer or "").split("+")
        expect |= {
            "subject": KEYS[names[0]].subject,
            "alg": "+".join(KEYS[name].algorithm for name in names),
            "key_ids": [KEYS[name].key_id for name in names],
        }
    expect["signature_bases"] = signature_bases_of(step.message)
    if step.answer is not None:
        expect["answer"] = step.answer
    breakers = {"not_closed": list(step.not_closed)} if step.not_closed else {}
    return {
        "now_ms": step.at_ms,
        **breakers,
        "edge": {
            "binding_hex": None if step.binding is None else step.binding.hex(),
            "stream": step.stream,
            "instance": step.instance,
        },
        "request": {
            "method": step.method,
            "scheme": step.scheme,
            "authority": step.authority,
            "target": step.target,
            "headers": [[name, value.decode("latin-1")] for name, value in step.headers],
            "body_base64": base64.b64encode(step.body).decode(),
        },
        "expect": expect,
    }


def signature_bases_of(message: RequestMessage) -> dict[str, str]:
    """Give the base of every PCH signature that has one, by label."""
    try:
        inputs = parse_signature_input(message.lines("signature-input"))
        return {
            label: signature_base(message, params).decode("ascii")
            for label, params in inputs.items()
            if params.tag in {"pch", "pch-pq"}
        }
    except HttpSigError:
        return {}
