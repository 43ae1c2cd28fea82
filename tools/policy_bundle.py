"""Compile policy/shield.rego to the module that the filter runs. `make policy` calls this; it needs OPA."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

POLICY = Path(__file__).resolve().parents[1] / "policy"


def main() -> int:
    """Run the policy's own tests, compile it, and write policy/compiled/shield.wasm."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--opa", default=shutil.which("opa"), type=Path, help="the OPA program")
    opa = parser.parse_args().opa
    if opa is None:
        print("OPA is missing: cd tools/go_parts/opa && go install github.com/open-policy-agent/opa", file=sys.stderr)
        return 2
    opa = opa.resolve()
    sources = ["shield.rego", "shield_test.rego"]
    for step in (["check", "--strict", *sources], ["test", *sources]):
        if subprocess.run([opa, *step], cwd=POLICY, check=False).returncode != 0:
            return 1
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.tar.gz"
        options = ["--target=wasm", "--entrypoint=signet/shield/verdict", f"--output={bundle}"]
        subprocess.run([opa, "build", *options, "shield.rego"], cwd=POLICY, check=True)
        with tarfile.open(bundle) as archive:
            member = archive.extractfile("/policy.wasm")
            if member is None:
                raise RuntimeError("the bundle holds no module")
            module = member.read()
    (POLICY / "compiled").mkdir(exist_ok=True)
    (POLICY / "compiled/shield.wasm").write_bytes(module)
    print(f"policy/compiled/shield.wasm: {len(module)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
