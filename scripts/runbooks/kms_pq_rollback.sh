#!/usr/bin/env bash
# Let one tenant verify with either half again (`verify_mode = "or"`), while its keys are rotated to hybrid ones.
#
#   kms_pq_rollback.sh --policy tenants.toml --tenant TENANT --pid SUPERVISOR_PID [--metrics http://127.0.0.1:9909]
#
# Changes the tenant's own row `[tenants.TENANT]` of the tenants' table, in one step, and reloads. A tenant without a
# row is refused: a row made here would allow what the default row does not. When the service refuses the new table,
# the former one is put back. The former table stays beside it as tenants.toml.before-rollback.
set -euo pipefail

readonly TIMEOUT_S=10
policy='' tenant='' pid='' metrics=http://127.0.0.1:9909
while [ $# -gt 0 ]; do
    case "$1" in
        --policy) policy=$2 ;;
        --tenant) tenant=$2 ;;
        --pid) pid=$2 ;;
        --metrics) metrics=$2 ;;
        *) echo "unknown option: $1" >&2; exit 2 ;;
    esac
    shift 2 || { echo "an option without its value" >&2; exit 2; }
done
[[ $tenant =~ ^[a-z0-9][a-z0-9._-]{0,62}$ && $pid =~ ^[0-9]+$ && -f $policy ]] ||
    { echo "needed: --policy FILE --tenant NAME --pid PID" >&2; exit 2; }
grep -qxF "[tenants.$tenant]" "$policy" || { echo "$policy has no row [tenants.$tenant]: write one first" >&2; exit 1; }

reload() { # 0 when the service has taken the table over
    kill -HUP "$pid" || return 1
    sleep 1.5 # a reload takes milliseconds; readiness looks twice a second
    for ((i = 0; i < TIMEOUT_S; i++)); do
        [ "$(curl --silent --max-time 2 -o /dev/null -w '%{http_code}' "$metrics/healthz")" = 200 ] && break
        sleep 1
    done
    ! curl --silent --max-time 2 "$metrics/readyz" | grep -q config_loaded
}

readonly before=$policy.before-rollback
cp -p "$policy" "$before"
temporary=$(mktemp "$policy.XXXXXX")
trap 'rm -f "$temporary"' EXIT
cp -p "$policy" "$temporary" # its mode and owner
awk -v row="[tenants.$tenant]" '
    /^[[:space:]]*\[/ { inside = ($0 == row) }
    inside && /^[[:space:]]*verify_mode[[:space:]]*=/ { next }
    { print }
    $0 == row { print "verify_mode = \"or\"" }' "$before" >"$temporary"
mv "$temporary" "$policy"
if reload; then
    echo "tenant $tenant: verify_mode = \"or\" is in force; the former table is $before"
    exit 0
fi
cp -p "$before" "$policy"
reload || true
echo "the service refused the new table: the former one is in force again" >&2
exit 1
