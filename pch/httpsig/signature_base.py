"""The signature base, RFC 9421 §2.5: the exact bytes that are signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.httpsig.derived import derived_value
from pch.httpsig.http_field import field_value

if TYPE_CHECKING:
    from pch.httpsig.message import RequestMessage, ResponseMessage
    from pch.httpsig.signature_input import SignatureParams


def signature_base(message: RequestMessage | ResponseMessage, params: SignatureParams) -> bytes:
    """Build the signature base, RFC 9421 §2.5.

    Returns ASCII bytes, lines separated by LF, no trailing newline. Raises ComponentError if a covered
    component is absent, does not apply to the message, or has no single value.
    """
    covered_fields = {component.name for component in params.components}
    lines_by_name: dict[str, list[bytes]] = {}
    for name, value in message.headers:
        if name in covered_fields:
            lines_by_name.setdefault(name, []).append(value)
    base: list[str] = []
    for component in params.components:
        if component.name[0] == "@":
            value_text = derived_value(message, component)
        else:
            value_text = field_value(lines_by_name.get(component.name, ()), component)
        base.append(f"{component.serialised}: {value_text}\n")
    base.append(f'"@signature-params": {params.serialised}')
    # Every value above was checked to be one line of ASCII, so that no value can pass for another line.
    return "".join(base).encode("ascii")
