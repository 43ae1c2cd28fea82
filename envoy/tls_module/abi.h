/* The part of Envoy 1.40's dynamic module ABI ("v0.2.0", alpha) that this module uses: our own declarations of the
 * functions Envoy exports to us, and of the functions it looks up in us. docs: README.md. Changing anything here
 * means measuring the new Envoy: see abi_check.c, which refuses any binary whose exported callbacks differ. */
#ifndef SIGNET_TLS_ABI_H
#define SIGNET_TLS_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENVOY_ABI_VERSION "v0.2.0"
#define ENVOY_SUPPORTED_VERSION "1.40"
/* The set of names "envoy_dynamic_module_callback_*" that Envoy 1.40 exports: how many, and the sum modulo 2^64 of
 * their 64-bit FNV-1a hashes. Every Envoy release so far added callbacks, so this tells releases apart. */
#define ENVOY_ABI_CALLBACK_COUNT 781U
#define ENVOY_ABI_CALLBACK_FINGERPRINT 0xab958e0e1268f656ULL

#define HOOK __attribute__((visibility("default")))
/* Weak, so that a binary that lacks one loads us far enough to be told so (abi_check.c) instead of failing in the
 * dynamic linker without a reason. */
#define CALLBACK extern __attribute__((weak, visibility("default")))

/* Bytes owned by one side and borrowed by the other for the length of a call. */
struct abi_buffer {
    const char *data;
    size_t length;
};

enum abi_log_level { LOG_TRACE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_CRITICAL, LOG_OFF };

/* ---- transport socket ---- */
enum abi_io_action { IO_KEEP_OPEN, IO_CLOSE };
enum abi_io_status { IO_SUCCESS, IO_AGAIN, IO_ERROR };
enum abi_connection_event { EVENT_REMOTE_CLOSE, EVENT_LOCAL_CLOSE, EVENT_CONNECTED, EVENT_CONNECTED_ZERO_RTT };

/* What a read or write step did: plaintext bytes moved, and whether the peer finished sending. */
struct abi_io_result {
    enum abi_io_action action;
    uint64_t bytes;
    bool end_stream;
};

CALLBACK enum abi_io_status envoy_dynamic_module_callback_transport_socket_io_read(void *envoy, char *into, size_t length,
                                                                                  size_t *moved);
CALLBACK enum abi_io_status envoy_dynamic_module_callback_transport_socket_io_write(void *envoy, const char *from,
                                                                                   size_t length, size_t *moved);
CALLBACK void envoy_dynamic_module_callback_transport_socket_read_buffer_add(void *envoy, const char *data, size_t length);
CALLBACK void envoy_dynamic_module_callback_transport_socket_write_buffer_get_slices(void *envoy, struct abi_buffer *slices,
                                                                                    size_t *count);
CALLBACK void envoy_dynamic_module_callback_transport_socket_write_buffer_drain(void *envoy, size_t length);
CALLBACK size_t envoy_dynamic_module_callback_transport_socket_write_buffer_length(void *envoy);
CALLBACK void envoy_dynamic_module_callback_transport_socket_raise_event(void *envoy, enum abi_connection_event event);
CALLBACK bool envoy_dynamic_module_callback_transport_socket_should_drain_read_buffer(void *envoy);
CALLBACK void envoy_dynamic_module_callback_transport_socket_set_is_readable(void *envoy);
CALLBACK bool envoy_dynamic_module_callback_transport_socket_get_connection_id(void *envoy, uint64_t *id);

/* ---- HTTP filter ---- */
enum { ATTRIBUTE_CONNECTION_ID = 28 };
enum { FILTER_CONTINUE = 0 };
enum { METRICS_SUCCESS = 0 };

CALLBACK bool envoy_dynamic_module_callback_http_filter_get_attribute_int(void *filter, int attribute, uint64_t *value);
CALLBACK bool envoy_dynamic_module_callback_http_set_dynamic_metadata_string(void *filter, struct abi_buffer name_space,
                                                                            struct abi_buffer key,
                                                                            struct abi_buffer value);
CALLBACK int envoy_dynamic_module_callback_http_filter_config_define_gauge(void *config, struct abi_buffer name,
                                                                          struct abi_buffer *labels, size_t label_count,
                                                                          size_t *id);
CALLBACK int envoy_dynamic_module_callback_http_filter_config_set_gauge(void *config, size_t id, struct abi_buffer *labels,
                                                                       size_t label_count, uint64_t value);
CALLBACK int envoy_dynamic_module_callback_http_filter_config_define_counter(void *config, struct abi_buffer name,
                                                                            struct abi_buffer *labels, size_t label_count,
                                                                            size_t *id);
CALLBACK int envoy_dynamic_module_callback_http_filter_config_increment_counter(void *config, size_t id,
                                                                               struct abi_buffer *labels,
                                                                               size_t label_count, uint64_t by);

/* ---- logging ---- */
CALLBACK void envoy_dynamic_module_callback_log(enum abi_log_level level, struct abi_buffer message);
CALLBACK bool envoy_dynamic_module_callback_log_enabled(enum abi_log_level level);

/* Every callback above, for the load-time check. */
#define SIGNET_NEEDED_CALLBACKS(X)            \
    X(log)                                    \
    X(log_enabled)                            \
    X(transport_socket_io_read)               \
    X(transport_socket_io_write)              \
    X(transport_socket_read_buffer_add)       \
    X(transport_socket_write_buffer_get_slices) \
    X(transport_socket_write_buffer_drain)    \
    X(transport_socket_write_buffer_length)   \
    X(transport_socket_raise_event)           \
    X(transport_socket_should_drain_read_buffer) \
    X(transport_socket_set_is_readable)       \
    X(transport_socket_get_connection_id)     \
    X(http_filter_get_attribute_int)          \
    X(http_set_dynamic_metadata_string)       \
    X(http_filter_config_define_gauge)        \
    X(http_filter_config_set_gauge)           \
    X(http_filter_config_define_counter)      \
    X(http_filter_config_increment_counter)

/* ---- hooks: looked up in this module by Envoy ---- */
HOOK const char *envoy_dynamic_module_on_program_init(void);

HOOK const void *envoy_dynamic_module_on_transport_socket_factory_config_new(void *envoy_config, struct abi_buffer name,
                                                                            struct abi_buffer config, bool is_upstream);
HOOK void envoy_dynamic_module_on_transport_socket_factory_config_destroy(const void *factory);
HOOK const void *envoy_dynamic_module_on_transport_socket_new(const void *factory, void *envoy);
HOOK void envoy_dynamic_module_on_transport_socket_destroy(const void *socket);
HOOK void envoy_dynamic_module_on_transport_socket_set_callbacks(void *envoy, const void *socket);
HOOK void envoy_dynamic_module_on_transport_socket_on_connected(void *envoy, const void *socket);
HOOK struct abi_io_result envoy_dynamic_module_on_transport_socket_do_read(void *envoy, const void *socket);
HOOK struct abi_io_result envoy_dynamic_module_on_transport_socket_do_write(void *envoy, const void *socket,
                                                                           bool end_stream);
HOOK void envoy_dynamic_module_on_transport_socket_close(void *envoy, const void *socket, enum abi_connection_event event,
                                                        bool abort_reset);
HOOK void envoy_dynamic_module_on_transport_socket_get_protocol(void *envoy, const void *socket, struct abi_buffer *result);
HOOK void envoy_dynamic_module_on_transport_socket_get_failure_reason(void *envoy, const void *socket,
                                                                     struct abi_buffer *result);
HOOK bool envoy_dynamic_module_on_transport_socket_can_flush_close(void *envoy, const void *socket);
HOOK bool envoy_dynamic_module_on_transport_socket_start_secure_transport(void *envoy, const void *socket);

HOOK const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy_config, struct abi_buffer name,
                                                               struct abi_buffer config);
HOOK void envoy_dynamic_module_on_http_filter_config_destroy(const void *config);
HOOK const void *envoy_dynamic_module_on_http_filter_new(const void *config, void *filter);
HOOK int envoy_dynamic_module_on_http_filter_request_headers(void *filter, const void *module_filter, bool end_stream);

#endif
