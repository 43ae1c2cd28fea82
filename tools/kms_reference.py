"""Write the tables of docs/reference/kms.md from the code: operations, errors, settings, metrics.

`python tools/kms_reference.py` rewrites what stands between `<!-- made: NAME -->` and `<!-- end -->`; the test
tests/unit/kms/test_reference.py compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

from kms import errors
from kms.config_keys import KEYS
from kms.config_reload import value_at
from kms.config_sections import KmsConfig
from kms.errors import KmsError
from kms.metric_aliases import ALIASES
from kms.operation_table import OPERATIONS
from kms.telemetry import Telemetry

REFERENCE_FILE: Final = Path(__file__).parent.parent / "docs" / "reference" / "kms.md"
_BLOCK: Final = re.compile(r"(<!-- made: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def operations_table() -> str:
    """List the operations."""
    head = ("HTTP", "gRPC", "scope", "body", "answer", "does")
    return _table(
        head,
        [
            (
                f"`{each.method} {each.path}`",
                f"`{each.rpc}`",
                f"`{each.scope.value}`",
                "none" if each.body is None else f"`{each.body.__name__}`",
                f"`{each.response.__name__}`",
                each.summary,
            )
            for each in OPERATIONS
        ],
    )


def errors_table() -> str:
    """List the errors by class: several may share one of the eleven codes."""
    kinds = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, KmsError) and each is not KmsError
    ]
    rows = [
        (
            f"`{each.code.value}`",
            str(each.http_status),
            each.grpc_status,
            f"`{each.reason}`",
            "yes" if each.retryable else "no",
            (each.__doc__ or "").strip().splitlines()[0],
        )
        for each in sorted(kinds, key=lambda kind: (kind.http_status, kind.code.value, kind.reason))
    ]
    return _table(("code", "HTTP", "gRPC", "reason", "again", "when"), rows)


def settings_table() -> str:
    """List the settings with where they are set from."""
    defaults = KmsConfig()
    rows = []
    for key in KEYS:
        flag = f"`--{key.flag}`" if key.flag else ""
        also = ", ".join(f"`{alias}`" for alias in key.aliases)
        reload = "reload" if key.reloads else "restart"
        rows.append((f"`{key.path}`", f"`{key.env}`", flag, _shown(value_at(defaults, key.path)), reload, also))
    return _table(("key", "environment", "flag", "default", "changes by", "also"), rows)


def _shown(value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if type(value).__name__ == "DurationMs":
        return f"`{value}ms`"
    return f"`{value}`"


def metrics_table() -> str:
    """List the metrics."""
    found = []
    for metric in vars(Telemetry()).values():
        name = getattr(metric, "_name", None)
        if name is None:
            continue
        kind = metric._type
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        full = f"`{name}_total`" if kind == "counter" else f"`{name}`"
        found.append((full, kind, labels, metric._documentation))
    for alias in ALIASES:
        full = f"`{alias.name}_total`" if alias.kind == "counter" else f"`{alias.name}`"
        found.append((full, alias.kind, ", ".join(f"`{label}`" for label in alias.labels), alias.text))
    return _table(("metric", "kind", "labels", "tells"), sorted(found))


TABLES: Final = {
    "operations": operations_table,
    "errors": errors_table,
    "settings": settings_table,
    "metrics": metrics_table,
}


def written(text: str) -> str:
    """Give the page with its tables made anew."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    """Rewrite the page."""
    REFERENCE_FILE.write_text(written(REFERENCE_FILE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
