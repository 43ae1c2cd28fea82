/* Only in the sanitised build. Envoy exports an allocator of its own that would hide every heap block from AddressSanitizer:
 * these send the module's blocks, and OpenSSL's, to the sanitiser's allocator instead. */
#ifndef SIGNET_TLS_SANITIZE_H
#define SIGNET_TLS_SANITIZE_H

#include <openssl/crypto.h>
#include <stdbool.h>
#include <stddef.h>

void *__interceptor_malloc(size_t size);
void *__interceptor_calloc(size_t count, size_t size);
void *__interceptor_realloc(void *block, size_t size);
void __interceptor_free(void *block);

static inline void *sanitized_malloc(size_t size, const char *file, int line) {
    (void)file;
    (void)line;
    return __interceptor_malloc(size);
}

static inline void *sanitized_realloc(void *block, size_t size, const char *file, int line) {
    (void)file;
    (void)line;
    return __interceptor_realloc(block, size);
}

static inline void sanitized_free(void *block, const char *file, int line) {
    (void)file;
    (void)line;
    __interceptor_free(block);
}

/* False when OpenSSL has already allocated from elsewhere. */
static inline bool sanitize_openssl_memory(void) {
    return CRYPTO_set_mem_functions(sanitized_malloc, sanitized_realloc, sanitized_free) == 1;
}

#endif
