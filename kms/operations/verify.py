"""POST /verify: verify a bundle under a mode, with any version above its key's fence (API.md §2.3, I-5, I-18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from kms.bundle import Verdict, judge, read_bundle
from kms.errors import BadRequest, KmsError
from kms.key_index import MAX_CANDIDATES
from kms.messages import VerifyDetails, VerifyRequest, VerifyResponse
from kms.operations.operation import Outcome, Subject, subjects_of
from kms.policy import check_bundle_may_pass, stricter_mode
from kms.primitive import WIRE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kms.bundle import Bundle
    from kms.key_index import Candidate
    from kms.messages import VerifyMode
    from kms.operations.operation import Call, Services
    from kms.primitive import Primitive
    from kms.principal import CallContext
    from kms.public_keys import PublicKeySet

# Up to so many versions are checked on the event loop, at 0.1 to 0.3 ms each; more of them on a thread.
MAX_INLINE_CANDIDATES: Final = 2
# A capability without a tenant caveat does not authenticate; one for very many tenants must name its key.
MAX_TENANTS_SEARCHED: Final = 8

_Prepared = tuple[str, "VerifyMode", "PublicKeySet"]


class Verify:
    """Verifies; needs neither provider nor a working audit log."""

    op: Final = "verify"
    queue: Final[Literal["verify"]] = "verify"
    needs_audit: Final = False
    audited: Final = True
    durable: Final = False
    response_type: Final = VerifyResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: VerifyRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the keys of the selector, or the tenants of the capability."""
        if request.kid_or_set is not None:
            return subjects_of(request.kid_or_set)
        tenants = sorted(context.principal.tenants)
        if len(tenants) > MAX_TENANTS_SEARCHED:
            raise BadRequest("the capability covers many tenants: name the kid")
        return tuple(Subject(tenant, None) for tenant in tenants)

    async def run(self, request: VerifyRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Try the candidates, newest first, until one satisfies the mode."""
        bundle = read_bundle(request.sigs)
        modes = _modes(request, call)
        post_quantum = any(primitive.post_quantum for primitive in bundle)
        for mode in set(modes.values()):
            check_bundle_may_pass(mode, has_post_quantum=post_quantum)
        prepared, refusal = self._prepared(self._candidates(subjects, bundle), modes)
        digest = bytes.fromhex(request.payload_b3)
        if len(prepared) <= MAX_INLINE_CANDIDATES:
            found = _try(prepared, bundle, digest)
        else:
            found = await self._services.pool.run(subjects[0].tenant, lambda: _try(prepared, bundle, digest))
        if refusal is not None and not found[1].ok:
            raise refusal
        return _outcome(prepared, found, bundle)

    def _candidates(self, subjects: tuple[Subject, ...], bundle: Bundle) -> list[Candidate]:
        if subjects[0].name is None:
            found = [each for subject in subjects for each in self._of_tenant(subject.tenant, bundle)]
            found.sort(key=lambda candidate: candidate[1].created_ms, reverse=True)
            return found[:MAX_CANDIDATES]
        found = []
        refusal: KmsError | None = None
        for subject in subjects:
            try:
                record = self._services.find(subject)
                versions = record.open_versions() if subject.version is None else (record.version_at(subject.version),)
            except KmsError as error:
                refusal = refusal or error
            else:
                found += [(record, version) for version in versions]
        if not found and refusal is not None:
            raise refusal
        return found[:MAX_CANDIDATES]

    def _of_tenant(self, tenant: str, bundle: Bundle) -> Iterable[Candidate]:
        """Give the versions that have a part of every algorithm of the bundle, then those that have one of them."""
        keys = self._services.store.keys
        first = next(iter(bundle))
        candidates = keys.newest(tenant, first)
        if len(bundle) == 1:
            return candidates
        others = (each for primitive in list(bundle)[1:] for each in keys.newest(tenant, primitive))
        return {(record.name, version.number): (record, version) for record, version in (*candidates, *others)}.values()

    def _prepared(
        self, candidates: list[Candidate], modes: Mapping[str, VerifyMode]
    ) -> tuple[list[_Prepared], KmsError | None]:
        """Prepare the candidates whose public keys may be used; give the first refusal of the others as well.

        A key whose backend is not configured, or away for too long, is no reason to refuse what another one signed. But
        where none of the others did, it may have been that key: then there is no verdict.
        """
        prepared: list[_Prepared] = []
        refusal: KmsError | None = None
        for candidate in candidates:
            try:
                prepared.append(self._prepare(candidate, modes))
            except KmsError as error:
                refusal = refusal or error
        return prepared, refusal

    def _prepare(self, candidate: Candidate, modes: Mapping[str, VerifyMode]) -> _Prepared:
        record, version = candidate
        kid = record.name.version(version.number)
        return str(kid), modes[record.name.tenant], self._services.public_keys.get(kid, record, version)


def _modes(request: VerifyRequest, call: Call) -> dict[str, VerifyMode]:
    callers = None if request.policy is None else request.policy.mode
    return {tenant: stricter_mode(each.verify_mode, callers) for tenant, each in call.decisions.items()}


def _try(prepared: list[_Prepared], bundle: Mapping[Primitive, bytes], digest: bytes) -> tuple[int, Verdict]:
    """Give the place and the verdict of the first candidate that passes; else of one of which most was checked."""
    best = (-1, Verdict(ok=False, checked=()))
    for place, (_, mode, key_set) in enumerate(prepared):
        verdict = judge(key_set.keys, dict(bundle), mode, digest)
        if verdict.ok:
            return place, verdict
        if len(verdict.checked) > len(best[1].checked):
            best = (place, verdict)
    return best


def _outcome(prepared: list[_Prepared], found: tuple[int, Verdict], bundle: Bundle) -> Outcome:
    place, verdict = found
    kid, mode, age_ms = "", None, None
    if verdict.ok:
        kid, mode, key_set = prepared[place]
        age_ms = key_set.age_ms
    else:
        age_ms = max((each.age_ms for _, _, each in prepared if each.age_ms is not None), default=None)
    response = VerifyResponse(
        ok=verdict.ok,
        details=VerifyDetails(checked=list(verdict.checked), satisfied_mode=mode, kid=kid or None),
        cache_age_ms=msgspec.UNSET if age_ms is None else age_ms,
    )
    algs = verdict.checked or tuple(WIRE_NAMES[primitive] for primitive in bundle)
    return Outcome(response, kid, algs, {"ok": "true" if verdict.ok else "false", "algs": ",".join(algs)})
