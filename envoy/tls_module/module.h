/* What the files of the module share. One mutex or one thread owns each piece of state; its comment says which. */
#ifndef SIGNET_TLS_MODULE_H
#define SIGNET_TLS_MODULE_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "abi.h"

enum {
    EXPORTER_BYTES = 32,             /* RFC 9266 §4.2: the tls-exporter binding */
    EXPORTER_HEX = 2 * EXPORTER_BYTES,
    RECORD_BYTES = 16384,            /* RFC 8446 §5.1: the most plaintext one record carries */
    MAX_HANDSHAKE_BYTES = 64 * 1024, /* read from one peer before its handshake is complete */
    MAX_KEY_UPDATES = 32,            /* received in a row without application data between them */
    MAX_CONFIG_BYTES = 16 * 1024,
    MAX_PEM_BYTES = 1024 * 1024,     /* a certificate chain or key file */
    MAX_PATH_BYTES = 4096,
    MAX_REASON_BYTES = 160,
};

/* ---- log.c ---- */
void log_line(enum abi_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool log_enabled(enum abi_log_level level);
/* Write OpenSSL's oldest queued error as text and empty this thread's queue. */
void openssl_reason(char *into, size_t size);
/* Empty this thread's queue, so that what is found in it afterwards belongs to the next call. */
void clear_openssl_errors(void);
/* Milliseconds of the monotonic clock. */
uint64_t monotonic_ms(void);

/* ---- abi_check.c ---- */
/* True when the running binary exports exactly the callbacks of the supported Envoy; else says what differs. */
bool abi_matches_running_envoy(void);

/* ---- config.c ---- */
struct tls_config {
    char certificate_file[MAX_PATH_BYTES]; /* PEM chain, leaf first */
    char private_key_file[MAX_PATH_BYTES]; /* PEM, not encrypted */
    uint32_t max_connections;              /* of one transport socket configuration */
    uint32_t reload_interval_ms;           /* the files are looked at no more often than this */
};
/* Parse the transport socket's JSON object. On failure writes why into reason and returns false. */
bool tls_config_parse(const char *json, size_t length, struct tls_config *config, char *reason, size_t reason_size);

/* ---- tls_context.c ---- */
struct file_stamp {
    dev_t device;
    ino_t inode;
    off_t bytes;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct tls_factory {
    struct tls_config config;
    _Atomic uint64_t next_check_ms;
    _Atomic uint32_t connections;
    _Atomic uint64_t next_full_warning_ms;
    pthread_mutex_t lock; /* owns everything below */
    SSL_CTX *context;
    struct file_stamp loaded_stamps[2]; /* of the pair in use: certificate, key */
    struct file_stamp failed_stamps[2]; /* of the last pair refused, so that it is told once */
    bool failing;
};
/* Load the pair for the first time. False (and logged) when it cannot be used. */
bool tls_factory_init(struct tls_factory *factory);
void tls_factory_clear(struct tls_factory *factory);
/* A connection object on the newest good pair; looks for a changed pair first, at most once per interval. */
SSL *tls_factory_new_connection(struct tls_factory *factory);

/* ---- exporter_table.c ---- */
/* Embedded in its socket, so the table allocates nothing and an entry cannot outlive its connection. */
struct exporter_entry {
    struct exporter_entry *next;
    uint64_t connection_id;
    char hex[EXPORTER_HEX];
    bool present;
};
/* False when that connection already has an entry, which is never overwritten. */
bool exporter_table_insert(struct exporter_entry *entry, uint64_t connection_id, const unsigned char exporter[EXPORTER_BYTES]);
/* Take the entry out and wipe it. Harmless when it is not in the table. */
void exporter_table_remove(struct exporter_entry *entry);
/* Copy the binding of exactly this connection. False when there is none. */
bool exporter_table_find(uint64_t connection_id, char hex[EXPORTER_HEX]);
uint64_t exporter_table_count(void);

/* ---- metrics.c ---- */
enum metric_counter {
    COUNT_HANDSHAKES,
    COUNT_HANDSHAKE_FAILURES,
    COUNT_CONNECTIONS_REFUSED,
    COUNT_CERTIFICATE_RELOADS,
    COUNT_CERTIFICATE_RELOAD_FAILURES,
    COUNT_REQUESTS_WITHOUT_BINDING,
    COUNTER_KINDS,
};
/* Register an HTTP filter configuration: Envoy has metrics only there. Null when there are too many. */
const void *metrics_attach(void *envoy_config);
void metrics_detach(const void *registration);
void metrics_count(enum metric_counter counter);
void metrics_connection_opened(void);
void metrics_connection_closed(void);
/* Show the present number of bindings. */
void metrics_bindings_changed(void);

/* ---- tls_bio.c, tls_handshake.c, tls_socket.c ---- */
struct tls_socket {
    struct tls_factory *factory;
    void *envoy; /* Envoy's side of this socket; valid as long as this struct */
    SSL *ssl;    /* null when the connection was refused for want of room */
    struct exporter_entry entry;
    uint64_t connection_id;
    size_t handshake_bytes;
    size_t write_retry_bytes; /* OpenSSL must see the same bytes again */
    uint32_t key_updates;
    bool established;
    bool closed;
    bool broken;           /* a fatal error: neither alert nor close_notify may follow */
    bool read_wants_write; /* SSL_read stopped because the socket could not take bytes */
    bool eof;
    bool flooded; /* a bound on unauthenticated or idle traffic was passed */
    bool close_notify_sent;
    bool foreign_alpn; /* the client offered only protocols we do not speak */
    char reason[MAX_REASON_BYTES];
};
/* A BIO that reads and writes through Envoy's I/O handle. Null when memory is short. */
BIO *tls_bio_new(struct tls_socket *socket);
/* Go on with the handshake. Once it is complete the binding is in the table and Envoy knows that the connection is up. */
enum abi_io_action tls_handshake(struct tls_socket *socket);
/* Mark the connection broken and keep the first reason, with OpenSSL's. */
void tls_note_failure(struct tls_socket *socket, const char *what);

#endif
