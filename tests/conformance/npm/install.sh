#!/usr/bin/env bash
# Install the pinned npm packages of the interop tests into build/npm-interop, once. Needs node and npm.
set -eu

readonly TIMEOUT_S=180
here=$(cd "$(dirname "$0")" && pwd)
target=${here%/tests/conformance/npm}/build/npm-interop
pin=$(sha256sum "$here/package-lock.json" | cut -d' ' -f1)
if [ "$(cat "$target/.pin" 2>/dev/null)" = "$pin" ]; then exit 0; fi

rm -rf "$target"
mkdir -p "$target"
cp "$here/package.json" "$here/package-lock.json" "$target"
(cd "$target" && timeout "$TIMEOUT_S" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
echo "$pin" >"$target/.pin"
