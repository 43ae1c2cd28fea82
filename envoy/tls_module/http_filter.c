/* The HTTP filter: puts the connection's binding into the request's dynamic metadata. It touches nothing else of the request,
 * and where the connection has no binding it sets nothing, which the verifier reads as "no binding" (PCH §1.1). */
#include <openssl/crypto.h>

#include "module.h"

static const struct abi_buffer metadata_namespace = {"signet.tls", 10};
static const struct abi_buffer metadata_key = {"tls_exporter", 12};

const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy_config, struct abi_buffer name,
                                                          struct abi_buffer config) {
    (void)name;
    (void)config;
    const void *registration = metrics_attach(envoy_config);
    if (registration == NULL)
        log_line(LOG_ERROR, "cannot register another HTTP filter configuration or its metrics");
    return registration;
}

void envoy_dynamic_module_on_http_filter_config_destroy(const void *config) { metrics_detach(config); }

/* The filter has no state of its own: the configuration stands for it. */
const void *envoy_dynamic_module_on_http_filter_new(const void *config, void *filter) {
    (void)filter;
    return config;
}

int envoy_dynamic_module_on_http_filter_request_headers(void *filter, const void *module_filter, bool end_stream) {
    (void)module_filter;
    (void)end_stream;
    uint64_t connection_id = 0;
    char hex[EXPORTER_HEX];
    if (envoy_dynamic_module_callback_http_filter_get_attribute_int(filter, ATTRIBUTE_CONNECTION_ID, &connection_id) &&
        exporter_table_find(connection_id, hex)) {
        envoy_dynamic_module_callback_http_set_dynamic_metadata_string(filter, metadata_namespace, metadata_key,
                                                                      (struct abi_buffer){hex, sizeof hex});
        OPENSSL_cleanse(hex, sizeof hex);
    } else {
        metrics_count(COUNT_REQUESTS_WITHOUT_BINDING);
    }
    return FILTER_CONTINUE;
}
