#include <openssl/err.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "module.h"

enum { MAX_LINE_BYTES = 1024 };

bool log_enabled(enum abi_log_level level) {
    return envoy_dynamic_module_callback_log_enabled != NULL && envoy_dynamic_module_callback_log_enabled(level);
}

void log_line(enum abi_log_level level, const char *format, ...) {
    static const char prefix[] = "signet_tls: ";
    char line[MAX_LINE_BYTES];
    va_list arguments;
    int prefix_length = snprintf(line, sizeof line, "%s", prefix);
    va_start(arguments, format);
    int length = vsnprintf(line + prefix_length, sizeof line - (size_t)prefix_length, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    size_t total = (size_t)prefix_length + (size_t)length;
    if (total >= sizeof line)
        total = sizeof line - 1;
    if (envoy_dynamic_module_callback_log == NULL || envoy_dynamic_module_callback_log_enabled == NULL) {
        /* Not an Envoy we know: its log cannot be used, but the reason for refusing it must reach someone. */
        fprintf(stderr, "%s\n", line);
        return;
    }
    if (envoy_dynamic_module_callback_log_enabled(level))
        envoy_dynamic_module_callback_log(level, (struct abi_buffer){line, total});
}

void clear_openssl_errors(void) {
    /* Emptying a queue that is empty already costs as much as encrypting a short record. */
    if (ERR_peek_error() != 0)
        ERR_clear_error();
}

void openssl_reason(char *into, size_t size) {
    unsigned long code = ERR_get_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    if (code == 0)
        snprintf(into, size, "no reason given");
    else if (reason != NULL)
        snprintf(into, size, "%s", reason);
    else
        snprintf(into, size, "OpenSSL error %08lx", code);
    ERR_clear_error();
}

uint64_t monotonic_ms(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * 1000U + (uint64_t)now.tv_nsec / 1000000U;
}
