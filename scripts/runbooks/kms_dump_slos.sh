#!/usr/bin/env bash
# Print what an operator of the key service looks at first; the exit status is 1 when something must be looked into.
#
#   kms_dump_slos.sh [http://127.0.0.1:9909]
#
# Reads /readyz and /metrics only, and changes nothing.
set -euo pipefail

readonly BASE=${1:-http://127.0.0.1:9909}
readonly TIMEOUT_S=5

fetch() { curl --silent --show-error --max-time "$TIMEOUT_S" "$BASE$1"; }

readyz=$(fetch /readyz) || { echo "ready: no answer from $BASE"; exit 1; }
metrics=$(fetch /metrics)
echo "ready: $readyz"

# p95 from the histogram's buckets, since the start: the bound below which 95 % of the operations were.
awk '
    /^kms_latency_seconds_bucket\{/ {
        match($0, /op="[^"]*"/); op = substr($0, RSTART + 4, RLENGTH - 5)
        match($0, /alg="[^"]*"/); alg = substr($0, RSTART + 5, RLENGTH - 6)
        match($0, /le="[^"]*"/); le = substr($0, RSTART + 4, RLENGTH - 5)
        key = op " " alg
        n[key]++; bound[key, n[key]] = le; count[key, n[key]] = $NF
    }
    END {
        for (key in n) {
            total = count[key, n[key]]
            if (total == 0) continue
            for (i = 1; i <= n[key]; i++) if (count[key, i] >= 0.95 * total) { p95 = bound[key, i]; break }
            printf "p95 %s: at most %s s of %d\n", key, p95, total
        }
    }' <<<"$metrics" | sort

grep -E '^(rejected_total|busy_rejections_total|kms_backend_sessions|kms_pq_mode|kms_pq_rollout_percent|queue_depth)[{ ]' \
    <<<"$metrics" | grep -v ' 0\.0$' || true

failed=0
[[ $readyz == *'"ready":true'* ]] || failed=1
for name in kms_audit_integrity_failed_total service_restarts_total bus_lagged_total; do
    value=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$metrics")
    [[ $value == 0.0 ]] || { echo "not zero: $name $value"; failed=1; }
done
exit "$failed"
