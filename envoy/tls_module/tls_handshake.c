/* The handshake, and the binding that it leaves behind. */
#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdio.h>

#include "module.h"

static const char exporter_label[] = "EXPORTER-Channel-Binding"; /* RFC 9266 §4.2 */

void tls_note_failure(struct tls_socket *socket, const char *what) {
    char why[MAX_REASON_BYTES / 2];
    socket->broken = true;
    openssl_reason(why, sizeof why);
    if (socket->reason[0] == '\0')
        snprintf(socket->reason, sizeof socket->reason, "%s: %s", what, why);
    if (log_enabled(LOG_DEBUG))
        log_line(LOG_DEBUG, "[C%" PRIu64 "] %s", socket->connection_id, socket->reason);
}

/* Compute the connection's binding and make it findable, before any request of the connection can exist. */
static bool publish_binding(struct tls_socket *socket) {
    unsigned char exporter[EXPORTER_BYTES];
    /* TLS 1.3 does not tell an absent context from an empty one (RFC 8446 §7.5). */
    bool exported = SSL_export_keying_material(socket->ssl, exporter, sizeof exporter, exporter_label,
                                               sizeof exporter_label - 1, NULL, 0, 1) == 1;
    bool published = exported && exporter_table_insert(&socket->entry, socket->connection_id, exporter);
    OPENSSL_cleanse(exporter, sizeof exporter);
    if (published)
        metrics_bindings_changed();
    return published;
}

static enum abi_io_action finish_handshake(struct tls_socket *socket) {
    socket->established = true;
    if (!envoy_dynamic_module_callback_transport_socket_get_connection_id(socket->envoy, &socket->connection_id) ||
        SSL_version(socket->ssl) != TLS1_3_VERSION || !publish_binding(socket)) {
        metrics_count(COUNT_HANDSHAKE_FAILURES);
        tls_note_failure(socket, "no channel binding");
        return IO_CLOSE;
    }
    metrics_count(COUNT_HANDSHAKES);
    /* Envoy may close this socket before the call returns. */
    envoy_dynamic_module_callback_transport_socket_raise_event(socket->envoy, EVENT_CONNECTED);
    return socket->closed ? IO_CLOSE : IO_KEEP_OPEN;
}

enum abi_io_action tls_handshake(struct tls_socket *socket) {
    clear_openssl_errors();
    int result = SSL_do_handshake(socket->ssl);
    if (result == 1)
        return finish_handshake(socket);
    int error = SSL_get_error(socket->ssl, result);
    if ((error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) && !socket->flooded)
        return IO_KEEP_OPEN;
    metrics_count(COUNT_HANDSHAKE_FAILURES);
    tls_note_failure(socket, "TLS handshake failed");
    return IO_CLOSE;
}
