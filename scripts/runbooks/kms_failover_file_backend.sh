#!/usr/bin/env bash
# Serve verification while the keys' backend is away for long: a service that knows every public half and signs nothing.
#
#   kms_failover_file_backend.sh --config kms.toml --state-dir DIR --scratch NEW_DIR [--ttl-ms 86400000]
#
# Stop the service first: this one takes its addresses. It works on a copy of the key store below NEW_DIR, so that
# nothing of the real state changes. Its audit log is unusable on purpose: so whatever signs or changes is refused
# (I-2), and /readyz stays 503. --ttl-ms is how long the public halves are
# believed; the operator decides it. Ends with Ctrl-C; then delete NEW_DIR and start the real service again.
set -euo pipefail

config='' state='' scratch='' ttl_ms=86400000
while [ $# -gt 0 ]; do
    case "$1" in
        --config) config=$2 ;;
        --state-dir) state=$2 ;;
        --scratch) scratch=$2 ;;
        --ttl-ms) ttl_ms=$2 ;;
        *) echo "unknown option: $1" >&2; exit 2 ;;
    esac
    shift 2 || { echo "an option without its value" >&2; exit 2; }
done
[[ -d $state && -n $scratch && $ttl_ms =~ ^[0-9]+$ ]] && { [ -z "$config" ] || [ -f "$config" ]; } ||
    { echo "needed: --state-dir DIR --scratch NEW_DIR [--config FILE]" >&2; exit 2; }
[ ! -e "$scratch" ] || { echo "$scratch is there already" >&2; exit 1; }

umask 077
mkdir "$scratch"
cp -a "$state" "$scratch/state"
mkdir "$scratch/audit"
echo 'no log: this service verifies only' >"$scratch/audit/log.json"
head -c 32 /dev/urandom | base64 >"$scratch/passphrase"
unset RON_KMS_MULTI_BACKENDS RON_KMS_ALLOW_SIGN_FALLBACK
export RON_KMS_BACKEND=file RON_KMS_ATTEST_REQUIRE=never RON_KMS_AUDIT_SEALING=software
export RON_KMS_STATE_DIR=$scratch/state RON_KMS_AUDIT_DIR=$scratch/audit RON_KMS_FILE_DIR=$scratch/sealed
export RON_KMS_FILE_PASSPHRASE_FILE=$scratch/passphrase RON_KMS_VERIFY_CACHE_TTL_MS=$ttl_ms
echo "verify-only: whatever signs or changes is refused; the copy is in $scratch" >&2
exec "${PYTHON:-python3}" -m kms serve ${config:+--config "$config"}
