/* The SSL_CTX of one transport socket configuration, and its replacement when the files on disk change. Connections keep
 * the context they began with, so a reload drops none of them. */
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "module.h"

static const char cipher_suites[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
static const char groups[] = "X25519:P-256:P-384";
static const unsigned char our_alpn[] = "\x02h2\x08http/1.1";

enum { TICKETS_PER_CONNECTION = 1, TICKET_LIFETIME_S = 7200 };

/* RFC 7301 §3.2 lets a server go on without ALPN; the socket then speaks HTTP/1.1 (tls_socket.c). */
static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *offered,
                       unsigned int offered_length, void *unused) {
    (void)unused;
    unsigned char *chosen = NULL;
    if (SSL_select_next_proto(&chosen, out_length, our_alpn, sizeof our_alpn - 1, offered, offered_length) ==
        OPENSSL_NPN_NEGOTIATED) {
        *out = chosen;
        return SSL_TLSEXT_ERR_OK;
    }
    struct tls_socket *socket = SSL_get_app_data(ssl);
    if (socket != NULL)
        socket->foreign_alpn = true;
    return SSL_TLSEXT_ERR_NOACK;
}

/* OpenSSL takes any number of KeyUpdate messages: count those that come without data between them. */
static void watch_messages(int sent, int version, int content_type, const void *bytes, size_t length, SSL *ssl, void *unused) {
    (void)version;
    (void)unused;
    if (sent || content_type != SSL3_RT_HANDSHAKE || length == 0 || *(const unsigned char *)bytes != SSL3_MT_KEY_UPDATE)
        return;
    struct tls_socket *socket = SSL_get_app_data(ssl);
    if (socket != NULL && ++socket->key_updates > MAX_KEY_UPDATES)
        socket->flooded = true;
}

/* Without this OpenSSL would ask for the pass phrase of an encrypted key on the terminal. */
static int refuse_pass_phrase(char *buffer, int size, int writing, void *unused) {
    (void)buffer;
    (void)size;
    (void)writing;
    (void)unused;
    return 0;
}

static bool configure(SSL_CTX *context) {
    static const unsigned char session_id_context[] = "signet_tls";
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(context, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_timeout(context, TICKET_LIFETIME_S);
    SSL_CTX_set_alpn_select_cb(context, choose_alpn, NULL);
    SSL_CTX_set_msg_callback(context, watch_messages);
    SSL_CTX_set_default_passwd_cb(context, refuse_pass_phrase);
    return SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(context, cipher_suites) == 1 && SSL_CTX_set1_groups_list(context, groups) == 1 &&
           SSL_CTX_set_num_tickets(context, TICKETS_PER_CONNECTION) == 1 &&
           SSL_CTX_set_max_early_data(context, 0) == 1 && SSL_CTX_set_recv_max_early_data(context, 0) == 1 &&
           SSL_CTX_set_session_id_context(context, session_id_context, sizeof session_id_context - 1) == 1;
}

/* A context on the present files, or null with the reason. */
static SSL_CTX *load_context(const struct tls_config *config, char *reason, size_t reason_size) {
    const char *step = "create a TLS context";
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    clear_openssl_errors();
    if (context != NULL && (step = "set up TLS 1.3", configure(context)) &&
        (step = "read the certificate chain", SSL_CTX_use_certificate_chain_file(context, config->certificate_file) == 1) &&
        (step = "read the private key, unencrypted PEM of the certificate's key,",
         SSL_CTX_use_PrivateKey_file(context, config->private_key_file, SSL_FILETYPE_PEM) == 1) &&
        (step = "match key and certificate", SSL_CTX_check_private_key(context) == 1))
        return context;
    char why[MAX_REASON_BYTES];
    openssl_reason(why, sizeof why);
    snprintf(reason, reason_size, "cannot %s: %s", step, why);
    SSL_CTX_free(context);
    return NULL;
}

/* What tells one content of a file from the next. A missing or unfit file leaves the stamp zero. */
static bool stamp_file(const char *path, struct file_stamp *stamp) {
    struct stat status;
    memset(stamp, 0, sizeof *stamp);
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size > MAX_PEM_BYTES)
        return false;
    stamp->device = status.st_dev;
    stamp->inode = status.st_ino;
    stamp->bytes = status.st_size;
    stamp->mtime_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    stamp->ctime_ns = (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
    return true;
}

static bool stamp_pair(const struct tls_config *config, struct file_stamp stamps[2]) {
    bool certificate = stamp_file(config->certificate_file, &stamps[0]);
    return stamp_file(config->private_key_file, &stamps[1]) && certificate;
}

static void log_certificate(const struct tls_config *config, SSL_CTX *context, const char *verb) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int digest_length = 0;
    struct tm expiry;
    X509 *certificate = SSL_CTX_get0_certificate(context);
    if (certificate == NULL || X509_digest(certificate, EVP_sha256(), digest, &digest_length) != 1 || digest_length < 8 ||
        ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &expiry) != 1)
        return;
    log_line(LOG_INFO, "%s certificate %s, sha256 %02x%02x%02x%02x%02x%02x%02x%02x..., not after %04d-%02d-%02dT%02d:%02d:%02dZ",
             verb, config->certificate_file, digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6],
             digest[7], expiry.tm_year + 1900, expiry.tm_mon + 1, expiry.tm_mday, expiry.tm_hour, expiry.tm_min,
             expiry.tm_sec);
    if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
        log_line(LOG_WARN, "certificate %s has expired", config->certificate_file);
}

bool tls_factory_init(struct tls_factory *factory) {
    char reason[2 * MAX_REASON_BYTES] = "certificate or key is missing, not a regular file, or too large";
    if (stamp_pair(&factory->config, factory->loaded_stamps))
        factory->context = load_context(&factory->config, reason, sizeof reason);
    if (factory->context == NULL) {
        log_line(LOG_ERROR, "%s, %s: %s", factory->config.certificate_file, factory->config.private_key_file, reason);
        return false;
    }
    pthread_mutex_init(&factory->lock, NULL);
    atomic_store(&factory->next_check_ms, monotonic_ms() + factory->config.reload_interval_ms);
    log_certificate(&factory->config, factory->context, "serving TLS 1.3 with");
    return true;
}

void tls_factory_clear(struct tls_factory *factory) {
    SSL_CTX_free(factory->context);
    pthread_mutex_destroy(&factory->lock);
}

static void keep_old_pair(struct tls_factory *factory, const struct file_stamp stamps[2], const char *reason) {
    /* A pair that is half written looks broken for a moment: it is tried again each interval, and told once. */
    if (!factory->failing || memcmp(factory->failed_stamps, stamps, sizeof factory->failed_stamps) != 0) {
        log_line(LOG_ERROR, "keeping the old certificate, the new %s, %s: %s", factory->config.certificate_file,
                 factory->config.private_key_file, reason);
        metrics_count(COUNT_CERTIFICATE_RELOAD_FAILURES);
    }
    memcpy(factory->failed_stamps, stamps, sizeof factory->failed_stamps);
    factory->failing = true;
}

/* With the lock held. */
static void reload_if_changed(struct tls_factory *factory) {
    struct file_stamp before[2], after[2];
    char reason[2 * MAX_REASON_BYTES] = "certificate or key is missing, not a regular file, or too large";
    bool present = stamp_pair(&factory->config, before);
    if (present && memcmp(before, factory->loaded_stamps, sizeof before) == 0) {
        factory->failing = false;
        return;
    }
    SSL_CTX *fresh = present ? load_context(&factory->config, reason, sizeof reason) : NULL;
    if (fresh == NULL) {
        keep_old_pair(factory, before, reason);
        return;
    }
    /* Files that changed while they were read are read once more at the next look. */
    stamp_pair(&factory->config, after);
    if (memcmp(before, after, sizeof before) == 0)
        memcpy(factory->loaded_stamps, before, sizeof before);
    SSL_CTX_free(factory->context);
    factory->context = fresh;
    factory->failing = false;
    log_certificate(&factory->config, fresh, "reloaded");
    metrics_count(COUNT_CERTIFICATE_RELOADS);
}

SSL *tls_factory_new_connection(struct tls_factory *factory) {
    uint64_t now = monotonic_ms();
    uint64_t due = atomic_load(&factory->next_check_ms);
    /* One thread of those that find the look due wins it. */
    bool look = now >= due &&
                atomic_compare_exchange_strong(&factory->next_check_ms, &due, now + factory->config.reload_interval_ms);
    pthread_mutex_lock(&factory->lock);
    if (look)
        reload_if_changed(factory);
    SSL *ssl = SSL_new(factory->context);
    pthread_mutex_unlock(&factory->lock);
    return ssl;
}
