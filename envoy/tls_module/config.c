/* The transport socket's configuration: one flat JSON object, strictly read. An unknown, repeated or missing key, a value
 * of another type or out of range refuses the whole configuration. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "module.h"

enum {
    DEFAULT_MAX_CONNECTIONS = 16384,
    MOST_CONNECTIONS = 1000000,
    DEFAULT_RELOAD_INTERVAL_MS = 1000,
    LEAST_RELOAD_INTERVAL_MS = 100,
    MOST_RELOAD_INTERVAL_MS = 3600000,
    MAX_KEY_BYTES = 64,
    MAX_NUMBER_BYTES = 32,
};

struct cursor {
    const char *at;
    const char *end;
};

static void skip_space(struct cursor *json) {
    while (json->at < json->end && memchr(" \t\r\n", *json->at, 4) != NULL)
        json->at++;
}

static bool take(struct cursor *json, char expected) {
    skip_space(json);
    if (json->at == json->end || *json->at != expected)
        return false;
    json->at++;
    return true;
}

static int hex_digit(char digit) {
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return -1;
}

/* The character after a backslash; only those that stand for one byte of ASCII, which is all a path or key needs. */
static int read_escape(struct cursor *json) {
    static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    if (json->at == json->end)
        return -1;
    char kind = *json->at++;
    for (size_t index = 0; kind != 'u' && index < sizeof escapes - 1; index += 2)
        if (escapes[index] == kind)
            return escapes[index + 1];
    if (kind != 'u' || json->end - json->at < 4)
        return -1;
    int code = 0;
    for (int index = 0; index < 4; index++) {
        int digit = hex_digit(*json->at++);
        if (digit < 0)
            return -1;
        code = code * 16 + digit;
    }
    return code > 0 && code < 0x80 ? code : -1;
}

/* A JSON string as a C string: no NUL inside, and short enough for `into`. */
static bool read_string(struct cursor *json, char *into, size_t size) {
    size_t length = 0;
    if (!take(json, '"'))
        return false;
    while (json->at < json->end && *json->at != '"') {
        int byte = (unsigned char)*json->at++;
        if (byte == '\\')
            byte = read_escape(json);
        else if (byte < 0x20)
            return false;
        if (byte <= 0 || length + 1 >= size)
            return false;
        into[length++] = (char)byte;
    }
    into[length] = '\0';
    return json->at < json->end && *json->at++ == '"';
}

/* A whole number. protobuf's Struct holds doubles, so 1e3 and 1000.0 are numbers like any other. */
static bool read_number(struct cursor *json, uint32_t least, uint32_t most, uint32_t *into) {
    char digits[MAX_NUMBER_BYTES];
    size_t length = 0;
    skip_space(json);
    while (json->at < json->end && strchr("0123456789.eE+-", *json->at) != NULL && length + 1 < sizeof digits)
        digits[length++] = *json->at++;
    digits[length] = '\0';
    char *end = digits;
    double value = strtod(digits, &end);
    if (length == 0 || *end != '\0' || !(value >= least && value <= most) || value != floor(value))
        return false;
    *into = (uint32_t)value;
    return true;
}

static bool read_member(struct cursor *json, const char *key, struct tls_config *config, unsigned *seen) {
    static const char *const keys[] = {"certificate_file", "private_key_file", "max_connections", "reload_interval_ms"};
    unsigned index = 0;
    while (index < 4 && strcmp(keys[index], key) != 0)
        index++;
    if (index == 4 || (*seen & (1U << index)) != 0)
        return false;
    *seen |= 1U << index;
    switch (index) {
    case 0:
        return read_string(json, config->certificate_file, sizeof config->certificate_file) && config->certificate_file[0];
    case 1:
        return read_string(json, config->private_key_file, sizeof config->private_key_file) && config->private_key_file[0];
    case 2:
        return read_number(json, 1, MOST_CONNECTIONS, &config->max_connections);
    default:
        return read_number(json, LEAST_RELOAD_INTERVAL_MS, MOST_RELOAD_INTERVAL_MS, &config->reload_interval_ms);
    }
}

bool tls_config_parse(const char *json, size_t length, struct tls_config *config, char *reason, size_t reason_size) {
    struct cursor cursor = {json, json + length};
    char key[MAX_KEY_BYTES] = "";
    unsigned seen = 0;
    memset(config, 0, sizeof *config);
    config->max_connections = DEFAULT_MAX_CONNECTIONS;
    config->reload_interval_ms = DEFAULT_RELOAD_INTERVAL_MS;
    if (length == 0 || length > MAX_CONFIG_BYTES || !take(&cursor, '{')) {
        snprintf(reason, reason_size, "transport_socket_config is not a JSON object of at most %d bytes", MAX_CONFIG_BYTES);
        return false;
    }
    bool closed = take(&cursor, '}');
    while (!closed) {
        if (!read_string(&cursor, key, sizeof key) || !take(&cursor, ':')) {
            snprintf(reason, reason_size, "malformed JSON after key \"%s\"", key);
            return false;
        }
        if (!read_member(&cursor, key, config, &seen)) {
            snprintf(reason, reason_size, "key \"%s\" is unknown, repeated, or its value is not acceptable", key);
            return false;
        }
        closed = take(&cursor, '}');
        if (!closed && !take(&cursor, ',')) {
            snprintf(reason, reason_size, "malformed JSON after key \"%s\"", key);
            return false;
        }
    }
    skip_space(&cursor);
    if (cursor.at != cursor.end) {
        snprintf(reason, reason_size, "something follows the JSON object");
        return false;
    }
    if ((seen & 3U) != 3U) {
        snprintf(reason, reason_size, "certificate_file and private_key_file are both required");
        return false;
    }
    return true;
}
