"""Write the software bill of materials: every locked Python package, as CycloneDX 1.6 JSON.

    python tools/sbom.py [FILE]

Made from the lock files alone, so the same locks give the same bytes: the bill has no time of its making, and its
serial number is drawn from its content. A component's hashes are those of every archive that the lock lets pip install.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parent.parent
LOCKS: Final = ("requirements.lock", "requirements-tpm.lock")
DEFAULT_FILE: Final = ROOT / "build" / "sbom.cdx.json"
_CONTINUED: Final = re.compile(r"[ \t]*\\\n[ \t]*")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_MARKER_PROPERTY: Final = "signet:marker"


class LockError(Exception):
    """A line of a lock file that pins no package, or not by hash."""


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One line of a lock. `name`: as PEP 503 writes it; `marker`: where it is installed (PEP 508), or empty."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]

    @property
    def purl(self) -> PackageURL:
        """Name it as the package URL specification does."""
        return PackageURL(type="pypi", name=self.name, version=self.version)


def parse_lock(text: str) -> list[LockedPackage]:
    """Read a lock file (pip's requirements format with hashes). Raises LockError."""
    whole = (line.strip() for line in _CONTINUED.sub(" ", text).splitlines())
    return [_parse_line(line) for line in whole if line and not line.startswith("#")]


def bill(packages: Iterable[LockedPackage], version: str) -> str:
    """Write the bill of Signet `version` over `packages` as CycloneDX 1.6 JSON."""
    ordered = sorted(packages, key=lambda each: (each.name, each.version))
    signet = Component(name="signet", version=version, type=ComponentType.APPLICATION, bom_ref="signet")
    components = [_component(each) for each in ordered]
    metadata = BomMetaData(component=signet)
    metadata.timestamp = None  # type: ignore[assignment]  # the library's default is now
    content = hashlib.sha256(repr((version, ordered)).encode()).digest()
    bom = Bom(components=components, metadata=metadata, serial_number=uuid.UUID(bytes=content[:16], version=4))
    bom.register_dependency(signet, components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def write_bill(file: Path) -> int:
    """Write the bill of this tree to `file`; give the number of its packages. Raises LockError."""
    packages = [each for name in LOCKS for each in parse_lock((ROOT / name).read_text())]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(bill(packages, version))
    return len(packages)


def _parse_line(line: str) -> LockedPackage:
    found = _HASH.findall(line)
    try:
        requirement = Requirement(_HASH.sub("", line).strip())
    except InvalidRequirement as error:
        raise LockError(f"not a pinned package: {line[:80]!r}") from error
    pins = list(requirement.specifier)
    if requirement.url is not None or len(pins) != 1 or pins[0].operator != "==" or "*" in pins[0].version:
        raise LockError(f"{requirement.name} is not pinned to one version")
    if not found:
        raise LockError(f"{requirement.name} has no sha256 hash")
    marker = "" if requirement.marker is None else str(requirement.marker)
    return LockedPackage(canonicalize_name(requirement.name), pins[0].version, marker, tuple(sorted(set(found))))


def _component(package: LockedPackage) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(package.purl),
        purl=package.purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.sha256],
        properties=[Property(name=_MARKER_PROPERTY, value=package.marker)] if package.marker else [],
    )


def main() -> int:
    """Write the bill to the file that is named, or to build/sbom.cdx.json."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    count = write_bill(file)
    sys.stdout.write(f"signet: {count} locked packages in {file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
