"""Requests of an attacker with one PCH signature or two, each half as the attack wants it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.e2e.attack_request import Request
from tests.support.hybrid_parts import Half, hybrid_message

if TYPE_CHECKING:
    from tests.e2e.attack_stage import Attacker


def signed(
    a: Attacker, signed_by: tuple[Half, ...], route: str, challenge: str | None = None, **options: object
) -> Request:
    """Sign for this attacker's connection."""
    body = options.pop("body", b"")
    assert isinstance(body, bytes)
    message = hybrid_message(
        signed_by,
        challenge or a.challenge(),
        method="POST" if body else "GET",
        target=a.target(f"/{route}", str(options.pop("rest", ""))),
        body=body,
        binding=a.session.binding,
        created_s=int(time.time()),
        authority=a.stage.authority,
    )
    headers = tuple(line for line in message.headers if line[0] != "content-length")
    return Request(message.method, message.target, message.authority, headers, body=body)
