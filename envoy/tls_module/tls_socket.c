/* The transport socket: records in, records out, life and death. Envoy calls all hooks of one socket on its worker thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "module.h"

enum { SLICES = 16, FULL_WARNING_INTERVAL_MS = 1000 };

static struct tls_socket *own(const void *socket) { return (struct tls_socket *)(uintptr_t)socket; }

static struct abi_io_result step(enum abi_io_action action, uint64_t bytes, bool end_stream) {
    return (struct abi_io_result){action, bytes, end_stream};
}

/* ---- read ---- */

struct abi_io_result envoy_dynamic_module_on_transport_socket_do_read(void *envoy, const void *module_socket) {
    struct tls_socket *socket = own(module_socket);
    char plaintext[RECORD_BYTES];
    uint64_t total = 0;
    if (socket->closed || socket->broken || socket->ssl == NULL)
        return step(IO_CLOSE, 0, false);
    if (!socket->established && (tls_handshake(socket) == IO_CLOSE || !socket->established))
        return step(socket->broken || socket->closed ? IO_CLOSE : IO_KEEP_OPEN, 0, false);
    for (;;) {
        size_t bytes = 0;
        clear_openssl_errors();
        if (SSL_read_ex(socket->ssl, plaintext, sizeof plaintext, &bytes) == 1) {
            socket->key_updates = 0;
            envoy_dynamic_module_callback_transport_socket_read_buffer_add(envoy, plaintext, bytes);
            total += bytes;
            if (!envoy_dynamic_module_callback_transport_socket_should_drain_read_buffer(envoy))
                continue;
            /* Enough for now; OpenSSL may hold more, which no readiness event of the TCP socket would announce. */
            envoy_dynamic_module_callback_transport_socket_set_is_readable(envoy);
            return step(IO_KEEP_OPEN, total, false);
        }
        switch (SSL_get_error(socket->ssl, 0)) {
        case SSL_ERROR_WANT_WRITE:
            socket->read_wants_write = true;
            return step(IO_KEEP_OPEN, total, false);
        case SSL_ERROR_WANT_READ:
            return step(IO_KEEP_OPEN, total, false);
        case SSL_ERROR_ZERO_RETURN:
            return step(IO_KEEP_OPEN, total, true);
        default:
            tls_note_failure(socket, "TLS read failed");
            return step(IO_CLOSE, total, false);
        }
    }
}

/* ---- write ---- */

/* The next bytes to encrypt as one record: a long first slice as it lies, short slices gathered. */
static const char *next_record(void *envoy, char *gathered, size_t *length) {
    struct abi_buffer slices[SLICES];
    size_t count = SLICES, filled = 0;
    size_t wanted = *length;
    envoy_dynamic_module_callback_transport_socket_write_buffer_get_slices(envoy, slices, &count);
    if (count > 0 && slices[0].length >= wanted)
        return slices[0].data;
    for (size_t index = 0; index < count && filled < wanted; index++) {
        size_t part = slices[index].length < wanted - filled ? slices[index].length : wanted - filled;
        if (part > 0)
            memcpy(gathered + filled, slices[index].data, part);
        filled += part;
    }
    *length = filled;
    return gathered;
}

static void send_close_notify(struct tls_socket *socket) {
    if (socket->close_notify_sent || socket->broken || !socket->established || socket->ssl == NULL)
        return;
    socket->close_notify_sent = true;
    clear_openssl_errors();
    SSL_shutdown(socket->ssl);
    clear_openssl_errors();
}

static struct abi_io_result write_records(struct tls_socket *socket, void *envoy, bool end_stream) {
    char gathered[RECORD_BYTES];
    uint64_t total = 0;
    size_t left = envoy_dynamic_module_callback_transport_socket_write_buffer_length(envoy);
    while (left > 0) {
        size_t length = left < RECORD_BYTES ? left : RECORD_BYTES, written = 0;
        if (socket->write_retry_bytes > 0)
            length = socket->write_retry_bytes;
        const char *record = next_record(envoy, gathered, &length);
        clear_openssl_errors();
        if (SSL_write_ex(socket->ssl, record, length, &written) != 1) {
            int error = SSL_get_error(socket->ssl, 0);
            if (error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ) {
                socket->write_retry_bytes = length;
                return step(IO_KEEP_OPEN, total, false);
            }
            tls_note_failure(socket, "TLS write failed");
            return step(IO_CLOSE, total, false);
        }
        socket->write_retry_bytes = 0;
        envoy_dynamic_module_callback_transport_socket_write_buffer_drain(envoy, written);
        total += written;
        left -= written;
    }
    if (end_stream)
        send_close_notify(socket);
    return step(IO_KEEP_OPEN, total, false);
}

struct abi_io_result envoy_dynamic_module_on_transport_socket_do_write(void *envoy, const void *module_socket, bool end_stream) {
    struct tls_socket *socket = own(module_socket);
    if (socket->closed || socket->broken || socket->ssl == NULL)
        return step(IO_CLOSE, 0, false);
    if (!socket->established) {
        if (tls_handshake(socket) == IO_CLOSE)
            return step(IO_CLOSE, 0, false);
        if (!socket->established)
            return step(IO_KEEP_OPEN, 0, false);
        /* OpenSSL may have read past the handshake. */
        envoy_dynamic_module_callback_transport_socket_set_is_readable(envoy);
    }
    if (socket->read_wants_write) {
        socket->read_wants_write = false;
        envoy_dynamic_module_callback_transport_socket_set_is_readable(envoy);
    }
    return write_records(socket, envoy, end_stream);
}

/* ---- life and death ---- */

const void *envoy_dynamic_module_on_transport_socket_new(const void *module_factory, void *envoy) {
    struct tls_factory *factory = (struct tls_factory *)(uintptr_t)module_factory;
    struct tls_socket *socket = calloc(1, sizeof *socket);
    if (socket == NULL)
        return NULL;
    socket->factory = factory;
    socket->envoy = envoy;
    metrics_connection_opened();
    if (atomic_fetch_add(&factory->connections, 1) >= factory->config.max_connections) {
        uint64_t now = monotonic_ms(), due = atomic_load(&factory->next_full_warning_ms);
        snprintf(socket->reason, sizeof socket->reason, "connection limit reached");
        metrics_count(COUNT_CONNECTIONS_REFUSED);
        if (now >= due &&
            atomic_compare_exchange_strong(&factory->next_full_warning_ms, &due, now + FULL_WARNING_INTERVAL_MS))
            log_line(LOG_WARN, "refusing connections: max_connections %u reached", factory->config.max_connections);
        return socket;
    }
    socket->ssl = tls_factory_new_connection(factory);
    BIO *bio = socket->ssl == NULL ? NULL : tls_bio_new(socket);
    if (bio == NULL) {
        SSL_free(socket->ssl);
        socket->ssl = NULL;
        snprintf(socket->reason, sizeof socket->reason, "out of memory");
        clear_openssl_errors();
        return socket;
    }
    SSL_set_app_data(socket->ssl, socket);
    SSL_set_bio(socket->ssl, bio, bio);
    SSL_set_accept_state(socket->ssl);
    return socket;
}

static void drop_binding(struct tls_socket *socket) {
    if (!socket->entry.present)
        return;
    exporter_table_remove(&socket->entry);
    metrics_bindings_changed();
}

void envoy_dynamic_module_on_transport_socket_close(void *envoy, const void *module_socket, enum abi_connection_event event,
                                                    bool abort_reset) {
    (void)envoy;
    (void)event;
    struct tls_socket *socket = own(module_socket);
    if (!abort_reset)
        send_close_notify(socket);
    socket->closed = true;
    drop_binding(socket);
}

void envoy_dynamic_module_on_transport_socket_destroy(const void *module_socket) {
    struct tls_socket *socket = own(module_socket);
    drop_binding(socket);
    SSL_free(socket->ssl);
    clear_openssl_errors();
    atomic_fetch_sub(&socket->factory->connections, 1);
    OPENSSL_cleanse(socket, sizeof *socket);
    free(socket);
    metrics_connection_closed();
}

void envoy_dynamic_module_on_transport_socket_get_protocol(void *envoy, const void *module_socket, struct abi_buffer *result) {
    (void)envoy;
    const struct tls_socket *socket = own(module_socket);
    const unsigned char *protocol = NULL;
    unsigned int length = 0;
    if (socket->ssl != NULL && socket->established)
        SSL_get0_alpn_selected(socket->ssl, &protocol, &length);
    if (length == 0 && socket->foreign_alpn)
        *result = (struct abi_buffer){"http/1.1", 8};
    else
        *result = (struct abi_buffer){(const char *)protocol, length};
}

void envoy_dynamic_module_on_transport_socket_get_failure_reason(void *envoy, const void *module_socket,
                                                                 struct abi_buffer *result) {
    (void)envoy;
    const struct tls_socket *socket = own(module_socket);
    *result = (struct abi_buffer){socket->reason, strlen(socket->reason)};
}

bool envoy_dynamic_module_on_transport_socket_can_flush_close(void *envoy, const void *module_socket) {
    (void)envoy;
    return own(module_socket)->established;
}

void envoy_dynamic_module_on_transport_socket_set_callbacks(void *envoy, const void *module_socket) {
    struct tls_socket *socket = own(module_socket);
    envoy_dynamic_module_callback_transport_socket_get_connection_id(envoy, &socket->connection_id);
}

void envoy_dynamic_module_on_transport_socket_on_connected(void *envoy, const void *module_socket) {
    (void)envoy;
    (void)module_socket;
}

bool envoy_dynamic_module_on_transport_socket_start_secure_transport(void *envoy, const void *module_socket) {
    (void)envoy;
    (void)module_socket;
    return false;
}
