"""Write the key service's public surface to docs/: OpenAPI as YAML, and the digests that CHANGELOG.md must name.

`python tools/kms_surface.py` writes docs/openapi/ron-kms.yaml and docs/api-history/kms-client.txt, and prints the line
that the change must have in CHANGELOG.md (tests/unit/kms/test_surface.py looks for it).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Final

import yaml

from kms.openapi import build_openapi

ROOT: Final = Path(__file__).parent.parent
OPENAPI_FILE: Final = ROOT / "docs" / "openapi" / "ron-kms.yaml"
PROTO_FILE: Final = ROOT / "kms" / "proto" / "ron" / "kms" / "v1" / "kms.proto"
CLIENT_FILE: Final = ROOT / "docs" / "api-history" / "kms-client.txt"
DIGEST_CHARS: Final = 12
_HEADER: Final = "# Made from kms/messages.py and kms/operation_table.py by tools/kms_surface.py; not edited by hand.\n"


def openapi_yaml() -> str:
    """Write the OpenAPI document as YAML."""
    return _HEADER + yaml.safe_dump(build_openapi(), sort_keys=False, allow_unicode=True, width=110)


def client_names() -> str:
    """List the public names of `kms.client`: its functions and classes with their public methods and parameters."""
    client = importlib.import_module("kms.client")
    lines: list[str] = []
    for name in sorted(getattr(client, "__all__", [each for each in vars(client) if not each.startswith("_")])):
        thing = getattr(client, name)
        if inspect.isclass(thing):
            lines.append(f"class {name}")
            for member, value in sorted(inspect.getmembers(thing)):
                ours = str(getattr(value, "__module__", "")).startswith("kms")
                if not member.startswith("_") and callable(value) and ours:
                    lines.append(f"  {member}{_signature(value)}")
        elif callable(thing):
            lines.append(f"{name}{_signature(thing)}")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def _signature(thing: object) -> str:
    try:
        return str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"


def changelog_line(openapi: str, proto: str, client: str) -> str:
    """Give the text that CHANGELOG.md must hold for this surface."""
    digests = (hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS] for text in (openapi, proto, client))
    return "kms surface: openapi {} proto {} client {}".format(*digests)


def main() -> int:
    """Write the files and print the line."""
    OPENAPI_FILE.write_text(openapi_yaml())
    CLIENT_FILE.parent.mkdir(exist_ok=True)
    CLIENT_FILE.write_text(client_names())
    sys.stdout.write(changelog_line(openapi_yaml(), PROTO_FILE.read_text(), client_names()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
