"""Problem documents, RFC 9457: what the admin server says when it does not answer."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.responses import Response


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Write a problem document; `detail` is for people and repeats nothing that was sent."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(json.dumps(document), status, headers, "application/problem+json")
