"""The header budget and who is granted relief from it (docs/reference/pch.md §6).

Header bytes are the sum over fields of len(name) + len(value) + 4. Past a route's budget a client is asked to move
evidence and post-quantum signatures into an envelope; past the hard cap, or when it did that already, it is refused
for good.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from pch.errors import HeaderBudget, HeaderTooLarge
from pch.reasons import Reason
from pch.relaxed import RELAXED_FIELD

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.request import EdgeRequest
    from extproc.route import Route

FIELD_OVERHEAD_BYTES: Final = 4
"""What a field costs beside its name and value: `: ` and CRLF."""
SIGNATURE_FIELDS: Final = ("signature", "signature-input")


def check_header_budget(request: EdgeRequest, route: Route) -> None:
    """Hold a request to the budget of its guarded route, PCH §6 (§4 step 1).

    All lines of one name count together. Raises `HeaderBudget` where relaxing may help, else `HeaderTooLarge`.
    """
    least = min(route.max_field_bytes, route.max_signature_bytes)
    if request.header_bytes <= min(least, route.max_header_bytes):
        return
    if not _is_over(request, route):
        return
    # Without content an envelope belongs to a connection; with it, ext_proc has to take it away.
    has_place = request.deferrable if request.has_content else route.bound
    if route.relax == "off" or not has_place or request.message.lines(RELAXED_FIELD):
        raise HeaderTooLarge("the header is over the route's budget, and there is nothing to relax")
    raise HeaderBudget("the header is over the route's budget")


def _is_over(request: EdgeRequest, route: Route) -> bool:
    sizes: Counter[str] = Counter()
    for name, value in request.message.headers:
        sizes[name] += len(name) + len(value) + FIELD_OVERHEAD_BYTES
    signatures = sum(sizes[name] for name in SIGNATURE_FIELDS)
    largest = max(sizes.values(), default=0)
    return (
        request.header_bytes > route.max_header_bytes
        or largest > route.max_field_bytes
        or signatures > route.max_signature_bytes
    )


def statically_engaged(route: Route) -> bool:
    """Tell whether the configuration alone keeps the relax actuator of `route` engaged."""
    return route.relax == "always"


def grants_relax(route: Route, reason: Reason, engaged: Callable[[Route], bool]) -> bool:
    """Tell whether the challenges of an answer carry the grant: with each 431 that asks for it, and while engaged.

    `engaged`: the actuator's word for a route; it never overrules `relax = "off"`.
    """
    return route.relax != "off" and (reason is Reason.HEADER_BUDGET or engaged(route))
