#!/usr/bin/env bash
# Build liboqs' ML-DSA as a shared library below build/liboqs (OQS_INSTALL_PATH), once. Needs cargo, cmake and a C compiler.
#
# The C source comes in the package of the Rust crate oqs-sys, whose checksum is pinned here.
set -eu

readonly CHECKSUM=ac6d66ee528a895ce5cc08851698d109c5d7ee5d7a0b3b40d61550eda91e414f
readonly ALGORITHMS='SIG_ml_dsa_44;SIG_ml_dsa_65;SIG_ml_dsa_87'
readonly FETCH_TIMEOUT_S=240
readonly BUILD_TIMEOUT_S=300

here=$(cd "$(dirname "$0")" && pwd)
prefix=${here%/tools/liboqs}/build/liboqs
recipe=$(cat "$here"/build.sh "$here"/Cargo.toml "$here"/supports_ctx_str.c | sha256sum | cut -d' ' -f1)
if [ -e "$prefix/lib/liboqs.so" ] && [ "$(cat "$prefix/.recipe" 2>/dev/null)" = "$recipe" ]; then exit 0; fi

mkdir -p "${prefix%/*}"
work=$(mktemp -d "${prefix%/*}/liboqs-work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$here/Cargo.toml" "$work"
(cd "$work" && timeout "$FETCH_TIMEOUT_S" cargo vendor --quiet vendor >/dev/null)
grep -A3 '^name = "oqs-sys"' "$work/Cargo.lock" | grep -qx "checksum = \"$CHECKSUM\"" || {
    echo "liboqs: the crate is not the one that is pinned" >&2
    exit 1
}

source=$work/vendor/oqs-sys/liboqs
configure() {
    cmake -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib \
        -DBUILD_SHARED_LIBS=ON -DOQS_BUILD_ONLY_LIB=ON -DOQS_USE_OPENSSL=OFF -DOQS_MINIMAL_BUILD="$ALGORITHMS" "$@"
}
configure
# The headers of the build folder are whole once it is configured.
cc -O2 -fPIC -I "$work/build/include" -c "$here/supports_ctx_str.c" -o "$work/supports_ctx_str.o"
configure -DCMAKE_SHARED_LINKER_FLAGS="$work/supports_ctx_str.o"
timeout "$BUILD_TIMEOUT_S" cmake --build "$work/build" --parallel 2
rm -rf "$prefix"
cmake --install "$work/build"
echo "$recipe" >"$prefix/.recipe"
