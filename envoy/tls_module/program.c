#include <openssl/crypto.h>
#include <openssl/ssl.h>

#include "module.h"

/* Called once when the module is loaded. A null answer makes Envoy refuse the configuration that names us. */
const char *envoy_dynamic_module_on_program_init(void) {
    if (!abi_matches_running_envoy())
        return NULL;
    /* Envoy carries BoringSSL. Were its symbols exported, ours would bind to them and fail in odd ways. */
    if (OPENSSL_version_major() != OPENSSL_VERSION_MAJOR) {
        log_line(LOG_CRITICAL, "refusing to load: built for OpenSSL %d, the running library is %s", OPENSSL_VERSION_MAJOR,
                 OpenSSL_version(OPENSSL_VERSION));
        return NULL;
    }
    /* Envoy's own shutdown may close connections after exit handlers started: OpenSSL must outlive it. */
    if (OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL) != 1) {
        log_line(LOG_CRITICAL, "refusing to load: OpenSSL could not be initialised");
        return NULL;
    }
    log_line(LOG_INFO, "loaded, Envoy " ENVOY_SUPPORTED_VERSION " ABI " ENVOY_ABI_VERSION ", %s",
             OpenSSL_version(OPENSSL_VERSION));
    return ENVOY_ABI_VERSION;
}
