#!/usr/bin/env bash
# The key service by curl and by gRPC: the documents' examples with real key ids.
#
#   MACAROON=… [KMS_URL=http://127.0.0.1:9446] [KMS_GRPC=127.0.0.1:9445] [PYTHON=python3] docs/reference/kms-examples.sh
#
# MACAROON is a capability of tenant "core" (or $TENANT) with every scope:
#   python -m kms mint --root-key-file … --tenant core --scope kms:read --scope kms:sign --scope kms:verify \
#     --scope kms:wrap --scope kms:unwrap --scope kms:rotate --life-s 3600 --out -
set -euo pipefail

: "${MACAROON:?a capability with every scope}"
KMS_URL=${KMS_URL:-http://127.0.0.1:9446}
KMS_GRPC=${KMS_GRPC:-127.0.0.1:9445}
PYTHON=${PYTHON:-python3}
TENANT=${TENANT:-core}
BASE=$KMS_URL/v1/kms

step() { printf '\n## %s\n' "$*"; }
field() { "$PYTHON" -c 'import json,sys; print(eval("d"+sys.argv[1], {"d": json.load(sys.stdin)}))' "$1"; }
# post <path> <body>: fails on anything but 2xx and shows the error envelope.
post() {
  curl -sS --fail-with-body -H "Authorization: Bearer $MACAROON" -H "Content-Type: application/json" \
    -H "X-Corr-ID: $("$PYTHON" -c 'import uuid; print(uuid.uuid4())')" -d "$2" "$BASE$1"
}
expect() { [ "$1" = "$2" ] || { echo "expected $2, got $1" >&2; exit 1; }; }

step 'What is signed is the BLAKE3 of the content: of "hello world" it is d74981ef…'
PAYLOAD_B3=$("$PYTHON" -c 'import blake3; print(blake3.blake3(b"hello world").hexdigest())')
expect "$PAYLOAD_B3" d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24
echo "$PAYLOAD_B3"

step 'Create keys: POST /keys'
KID=$(post /keys "{\"tenant\":\"$TENANT\",\"purpose\":\"audit\",\"alg\":\"hybrid\",\"policy_hints\":{\"rotate_days\":30}}" | field '["kid"]')
KEM=$(post /keys "{\"tenant\":\"$TENANT\",\"purpose\":\"kem\",\"alg\":\"x25519\"}" | field '["kid"]')
echo "$KID"
echo "$KEM"

step 'Sign, hybrid on: POST /sign'
SIGNED=$(post /sign "{\"kid_or_set\":{\"kid\":\"$KID\"},\"payload_b3\":\"$PAYLOAD_B3\",\"policy\":{\"produce_hybrid\":true}}")
expect "$(field '["sigs"][0]["alg"]+" "+d["sigs"][1]["alg"]' <<<"$SIGNED")" "ed25519 ml-dsa"
SIGS=$("$PYTHON" -c 'import json,sys; print(json.dumps(json.load(sys.stdin)["sigs"]))' <<<"$SIGNED")

step 'Verify, both signatures: POST /verify'
VERDICT=$(post /verify "{\"payload_b3\":\"$PAYLOAD_B3\",\"sigs\":$SIGS,\"policy\":{\"mode\":\"and\"}}")
echo "$VERDICT"
expect "$(field '["ok"]' <<<"$VERDICT")" True
expect "$(field '["details"]["satisfied_mode"]' <<<"$VERDICT")" and

step 'The same signatures over other content do not verify'
OTHER=$("$PYTHON" -c 'import blake3; print(blake3.blake3(b"hello World").hexdigest())')
expect "$(post /verify "{\"payload_b3\":\"$OTHER\",\"sigs\":$SIGS,\"policy\":{\"mode\":\"and\"}}" | field '["ok"]')" False

step 'Wrap and unwrap a key: POST /wrap, POST /unwrap'
PLAIN=$("$PYTHON" -c 'import base64,os; print(base64.b64encode(os.urandom(32)).decode())')
WRAPPED=$(post /wrap "{\"kid\":\"$KEM\",\"plaintext_key_b64\":\"$PLAIN\",\"kem_mode\":\"hybrid\"}" | field '["wrapped_b64"]')
expect "$(post /unwrap "{\"kid\":\"$KEM\",\"wrapped_b64\":\"$WRAPPED\"}" | field '["plaintext_key_b64"]')" "$PLAIN"

step 'Rotate: POST /keys/{kid}/rotate. In a path # is %23; slashes may stay as they are'
OP_ID=$("$PYTHON" -c 'import uuid; print(uuid.uuid4())')
NEXT=$(post "/keys/${KID/\#/%23}/rotate" "{\"op_id\":\"$OP_ID\"}")
echo "$NEXT"
expect "$(field '["previous"]' <<<"$NEXT")" "$KID"
expect "$(post "/keys/${KID/\#/%23}/rotate" "{\"op_id\":\"$OP_ID\"}")" "$NEXT"

step 'What the former version signed still verifies'
expect "$(post /verify "{\"payload_b3\":\"$PAYLOAD_B3\",\"sigs\":$SIGS,\"policy\":{\"mode\":\"and\"}}" | field '["ok"]')" True

step 'Describe the key: GET /keys/{kid}, slashes as %2F'
QUOTED=${KID//\//%2F}
DESCRIBED=$(curl -sS --fail-with-body -H "Authorization: Bearer $MACAROON" "$BASE/keys/${QUOTED/\#/%23}")
expect "$(field '["versions"]' <<<"$DESCRIBED")" "['#v1', '#v2']"

step 'Without a capability: 401 and the envelope'
curl -sS -o /dev/null -w '%{http_code}\n' -d '{}' "$BASE/sign" | grep -qx 401

step 'gRPC, the same fields: ron.kms.v1.Kms/Sign and Verify'
KID=$KID PAYLOAD_B3=$PAYLOAD_B3 KMS_GRPC=$KMS_GRPC MACAROON=$MACAROON "$PYTHON" - <<'PYTHON_END'
import os

import grpc

from kms.proto.ron.kms.v1 import kms_pb2

with grpc.insecure_channel(os.environ["KMS_GRPC"]) as channel:
    metadata = (("authorization", f"Bearer {os.environ['MACAROON']}"),)
    sign = channel.unary_unary(
        "/ron.kms.v1.Kms/Sign",
        request_serializer=kms_pb2.SignRequest.SerializeToString,
        response_deserializer=kms_pb2.SignResponse.FromString,
    )
    verify = channel.unary_unary(
        "/ron.kms.v1.Kms/Verify",
        request_serializer=kms_pb2.VerifyRequest.SerializeToString,
        response_deserializer=kms_pb2.VerifyResponse.FromString,
    )
    digest = os.environ["PAYLOAD_B3"]
    request = kms_pb2.SignRequest(
        kid_or_set={"kid": os.environ["KID"]}, payload_b3=digest, policy={"produce_hybrid": True}
    )
    signed = sign(request, metadata=metadata, timeout=5)
    verdict = verify(
        kms_pb2.VerifyRequest(payload_b3=digest, sigs=signed.sigs, policy={"mode": "and"}), metadata=metadata, timeout=5
    )
    assert verdict.ok, verdict
    print(signed.kid, [each.alg for each in signed.sigs], "verified:", verdict.details.satisfied_mode)
PYTHON_END
printf '\nall examples hold\n'
