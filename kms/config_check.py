"""The rules between settings and the world, applied at start and at every reload (CONFIG.md §4). All fail closed."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.config_values import ConfigError, SocketAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.config_sections import KmsConfig

MIN_BODY_BYTES: Final = 1024
MAX_BODY_BYTES: Final = 1_048_576
MAX_SOCKET_PATH_BYTES: Final = 107
OTHER_DESCRIPTORS: Final = 256
"""What the service keeps open besides connections: its sockets, stores, backends and threads."""
POST_QUANTUM_ALGS: Final = frozenset({"ml-dsa", "ml-dsa-44", "ml-dsa-87"})
ATTESTING_BACKENDS: Final = frozenset({"tpm", "pkcs11"})
MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})
_UNPRIVILEGED_PORT_START: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_MOUNTS: Final = Path("/proc/self/mounts")


def check_config(config: KmsConfig, environ: Mapping[str, str]) -> list[str]:
    """Check every rule that one key's type cannot hold. Returns warnings; raises ConfigError at the first violation."""
    _check_addresses(config)
    _check_limits(config)
    _check_tls(config)
    _check_backends(config, environ)
    _check_amnesia(config)
    _check_attestation(config)
    _check_observability(config)
    return _warnings(config)


def _check_addresses(config: KmsConfig) -> None:
    addresses = [
        ("bind_addr", config.bind_addr),
        ("grpc_addr", config.grpc_addr),
        ("metrics_addr", config.metrics_addr),
    ]
    seen: dict[SocketAddress, str] = {}
    for name, address in addresses:
        if address is None or address.port == 0:
            continue
        if address in seen:
            raise ConfigError(f"{name}: is the same as {seen[address]}")
        seen[address] = name
        if address.port < _first_free_port() and os.geteuid() != 0:
            raise ConfigError(f"{name}: a port below {_first_free_port()} needs privileges")
    path = config.unix.path
    if path is None:
        return
    if len(os.fsencode(path.absolute())) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"unix.path: is longer than {MAX_SOCKET_PATH_BYTES} bytes")
    if not config.unix.allowed_uids:
        raise ConfigError("unix.allowed_uids: at least one uid is needed with unix.path")


def _first_free_port() -> int:
    try:
        return int(_UNPRIVILEGED_PORT_START.read_text())
    except (OSError, ValueError):
        return 1024


def _check_limits(config: KmsConfig) -> None:
    if not MIN_BODY_BYTES <= config.limits.max_body_bytes <= MAX_BODY_BYTES:
        raise ConfigError("limits.max_body_bytes: must be from 1KiB to 1MiB")


def _check_tls(config: KmsConfig) -> None:
    tls = config.tls
    if not tls.enabled:
        if tls.client_ca_path is not None:
            raise ConfigError("tls.client_ca_path: means nothing without tls.enabled")
        return
    for name, path in (("tls.cert_path", tls.cert_path), ("tls.key_path", tls.key_path)):
        if path is None:
            raise ConfigError(f"{name}: is required with tls.enabled")
        _check_private_file(name, path)
    if tls.client_ca_path is not None and not tls.client_ca_path.is_file():
        raise ConfigError("tls.client_ca_path: is not a file")


def _check_private_file(name: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{name}: {path}: is not a file")
    if mode & 0o007:
        raise ConfigError(f"{name}: {path}: others may read or write it; chmod 0600")


def _check_backends(config: KmsConfig, environ: Mapping[str, str]) -> None:
    service = config.service
    if service.multi_backends[0] != service.backend:
        raise ConfigError("service.multi_backends: the first is the sign authority and must be service.backend")
    if len(set(service.multi_backends)) != len(service.multi_backends):
        raise ConfigError("service.multi_backends: names a backend twice")
    if len(set(service.allowed_algs)) != len(service.allowed_algs):
        raise ConfigError("service.allowed_algs: names an algorithm twice")
    if service.allow_sign_fallback and len(service.multi_backends) == 1:
        raise ConfigError("service.allow_sign_fallback: means nothing with one backend")
    if "file" in service.multi_backends:
        _check_file_backend(config)
    if "pkcs11" in service.multi_backends:
        _check_pkcs11_backend(config, environ)
    if "cloud" in service.multi_backends and not config.backends.cloud.key_id:
        raise ConfigError("backends.cloud.key_id: is required with the cloud backend")


def _check_file_backend(config: KmsConfig) -> None:
    backend = config.backends.file
    if backend.kdf == "age":
        raise ConfigError("backends.file.kdf: age is not supported; use scrypt or argon2id")
    if backend.passphrase_file is None:
        raise ConfigError("backends.file.passphrase_file: is required with the file backend")
    _check_private_file("backends.file.passphrase_file", backend.passphrase_file)
    check_writable_dir("backends.file.dir", backend.dir)


def _check_pkcs11_backend(config: KmsConfig, environ: Mapping[str, str]) -> None:
    backend = config.backends.pkcs11
    if backend.module_path is None or not backend.module_path.is_file():
        raise ConfigError("backends.pkcs11.module_path: must exist")
    if not backend.pin_env:
        raise ConfigError("backends.pkcs11.pin_env: must name the variable that holds the PIN")
    if not environ.get(backend.pin_env):
        raise ConfigError("backends.pkcs11.pin_env: the variable that it names is not set")


def check_writable_dir(name: str, path: Path) -> None:
    """Make a directory (0700) where it is missing, and prove that a file in it can be made durable."""
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be made or written: {error.strerror}") from error


def _check_amnesia(config: KmsConfig) -> None:
    if not config.service.amnesia:
        return
    for backend in config.service.multi_backends:
        if backend != "inmem":
            raise ConfigError(f"service.amnesia: keys may be in memory only, but {backend} keeps them")
    if config.audit.dir is not None and _file_system(config.audit.dir) not in MEMORY_FILE_SYSTEMS:
        raise ConfigError("audit.dir: must be unset or in memory (tmpfs, ramfs) under service.amnesia")


def _file_system(path: Path) -> str:
    """Find the type of the file system under the longest mount point above `path`."""
    place = path.absolute().resolve()
    best, kind = "", ""
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split(" ")
        mount = fields[1].encode().decode("unicode_escape")
        if len(mount) >= len(best) and place.is_relative_to(mount):
            best, kind = mount, fields[2]
    return kind


def _check_attestation(config: KmsConfig) -> None:
    attests = config.service.backend in ATTESTING_BACKENDS
    if config.security.attest_require == "required" and not attests:
        raise ConfigError(f"security.attest_require: {config.service.backend} has no attestation to give")
    if config.audit.sealing == "attested" and not attests:
        raise ConfigError(f"audit.sealing: {config.service.backend} has no attestation to bind the log to")


def _check_observability(config: KmsConfig) -> None:
    if config.observability.log_inputs:
        raise ConfigError("observability.log_inputs: inputs are never logged (I-16)")
    if config.observability.redact_level == "none":
        raise ConfigError("observability.redact_level: none would log what I-16 forbids; use lengths or hashes")


def _warnings(config: KmsConfig) -> list[str]:
    warnings: list[str] = []
    for name, address in (("bind_addr", config.bind_addr), ("grpc_addr", config.grpc_addr)):
        if address is not None and not address.loopback and not config.tls.enabled:
            warnings.append(f"{name}: others can reach it and TLS is off: capabilities cross the network in the clear")
    if not config.metrics_addr.loopback:
        warnings.append("metrics_addr: others can reach it; it has no authentication")
    needed = config.max_conns * _listener_count(config) + OTHER_DESCRIPTORS
    granted = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if granted != resource.RLIM_INFINITY and granted < needed:
        warnings.append(f"max_conns: may need {needed} descriptors; RLIMIT_NOFILE grants {granted}")
    if config.pq.verify_mode != "or" and config.pq.rollout_percent and not _signs_post_quantum(config):
        warnings.append("pq.verify_mode: no post-quantum signature is allowed, or the backend makes none: not ready")
    if config.pq.verify_mode == "pq_only":
        warnings.append("pq.verify_mode: pq_only refuses every consumer that signs classically only")
    return warnings


def _signs_post_quantum(config: KmsConfig) -> bool:
    """Tell whether the backend may make what the phase wants; `service_probes` looks at what it can do. Cloud: none."""
    if config.service.backend == "cloud":
        return True
    return config.service.backend != "pkcs11" and not POST_QUANTUM_ALGS.isdisjoint(config.service.allowed_algs)


def _listener_count(config: KmsConfig) -> int:
    return 2 + (config.grpc_addr is not None) + (config.unix.path is not None)
