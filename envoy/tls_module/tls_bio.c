/* OpenSSL's view of the TCP connection: Envoy's I/O handle. Here the bounds on what a peer may send are kept. */
#include <openssl/bio.h>
#include <stdio.h>

#include "module.h"

static void note_reason(struct tls_socket *socket, const char *reason) {
    if (socket->reason[0] == '\0')
        snprintf(socket->reason, sizeof socket->reason, "%s", reason);
}

static int fail_connection(struct tls_socket *socket, size_t *moved) {
    *moved = 0;
    socket->broken = true;
    note_reason(socket, "connection reset");
    return 0;
}

static int read_bytes(BIO *bio, char *into, size_t length, size_t *moved) {
    struct tls_socket *socket = BIO_get_data(bio);
    *moved = 0;
    BIO_clear_retry_flags(bio);
    if (socket->flooded) {
        note_reason(socket, "too many KeyUpdate messages");
        return 0;
    }
    if (socket->eof)
        return 0;
    switch (envoy_dynamic_module_callback_transport_socket_io_read(socket->envoy, into, length, moved)) {
    case IO_SUCCESS:
        break;
    case IO_AGAIN:
        *moved = 0;
        BIO_set_retry_read(bio);
        return 0;
    default:
        return fail_connection(socket, moved);
    }
    socket->eof = *moved == 0;
    if (!socket->established) {
        socket->handshake_bytes += *moved;
        if (socket->handshake_bytes > MAX_HANDSHAKE_BYTES) {
            socket->flooded = true;
            note_reason(socket, "handshake too large");
            *moved = 0;
        }
    }
    return *moved > 0;
}

static int write_bytes(BIO *bio, const char *from, size_t length, size_t *moved) {
    struct tls_socket *socket = BIO_get_data(bio);
    *moved = 0;
    BIO_clear_retry_flags(bio);
    if (length == 0)
        return 1;
    switch (envoy_dynamic_module_callback_transport_socket_io_write(socket->envoy, from, length, moved)) {
    case IO_SUCCESS:
        if (*moved > 0)
            return 1;
        BIO_set_retry_write(bio);
        return 0;
    case IO_AGAIN:
        *moved = 0;
        BIO_set_retry_write(bio);
        return 0;
    default:
        return fail_connection(socket, moved);
    }
}

static long control(BIO *bio, int command, long number, void *pointer) {
    (void)number;
    (void)pointer;
    struct tls_socket *socket = BIO_get_data(bio);
    if (command == BIO_CTRL_FLUSH)
        return 1;
    if (command == BIO_CTRL_EOF)
        return socket != NULL && socket->eof;
    return 0;
}

static pthread_once_t method_once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method;

static void create_method(void) {
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "envoy");
    if (method == NULL)
        return;
    BIO_meth_set_read_ex(method, read_bytes);
    BIO_meth_set_write_ex(method, write_bytes);
    BIO_meth_set_ctrl(method, control);
}

BIO *tls_bio_new(struct tls_socket *socket) {
    pthread_once(&method_once, create_method);
    BIO *bio = method == NULL ? NULL : BIO_new(method);
    if (bio == NULL)
        return NULL;
    BIO_set_data(bio, socket);
    BIO_set_init(bio, 1);
    return bio;
}
