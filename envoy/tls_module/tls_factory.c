/* The hooks for the transport socket's configuration. */
#include <stdlib.h>

#include "module.h"

const void *envoy_dynamic_module_on_transport_socket_factory_config_new(void *envoy_config, struct abi_buffer name,
                                                                       struct abi_buffer config, bool is_upstream) {
    (void)envoy_config;
    (void)name;
    char reason[MAX_REASON_BYTES];
    if (is_upstream) {
        log_line(LOG_ERROR, "this transport socket terminates TLS: it serves listeners, not clusters");
        return NULL;
    }
    struct tls_factory *factory = calloc(1, sizeof *factory);
    if (factory == NULL)
        return NULL;
    if (!tls_config_parse(config.data, config.length, &factory->config, reason, sizeof reason))
        log_line(LOG_ERROR, "configuration refused: %s", reason);
    else if (tls_factory_init(factory))
        return factory;
    free(factory);
    return NULL;
}

/* Envoy keeps the configuration until the last of its sockets is gone. */
void envoy_dynamic_module_on_transport_socket_factory_config_destroy(const void *module_factory) {
    struct tls_factory *factory = (struct tls_factory *)(uintptr_t)module_factory;
    tls_factory_clear(factory);
    free(factory);
}
