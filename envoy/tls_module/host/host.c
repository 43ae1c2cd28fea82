/* A stand-in for Envoy, linked with the module's sources so that AddressSanitizer and UBSan see every block of them. It serves
 * TLS on a loopback port: each piece of plaintext that arrives is answered with the binding the HTTP filter published, a
 * newline, and the piece itself. `host CERTIFICATE KEY` prints its port, ends on SIGTERM, and then fails unless the table
 * is empty. `host --abi` asks the module to load, which it must refuse: this program is not Envoy. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "module.h"

enum { MAX_CLIENTS = 64, BUFFER_BYTES = 1 << 20, HIGH_WATER_BYTES = 1 << 18, CLOSE_EVERY = 5 };

struct client {
    int fd;
    uint64_t id;
    const void *socket;
    char *output;
    size_t output_bytes;
    bool readable; /* asked for by the module */
    bool closing;
    bool bound;
    char binding[EXPORTER_HEX];
};

static struct client clients[MAX_CLIENTS];
static volatile sig_atomic_t ended;
static uint64_t next_id = 1;
static bool close_on_connect;

/* ---- callbacks ---- */

void envoy_dynamic_module_callback_log(enum abi_log_level level, struct abi_buffer message) {
    fprintf(stderr, "%d %.*s\n", (int)level, (int)message.length, message.data);
}

bool envoy_dynamic_module_callback_log_enabled(enum abi_log_level level) { return level >= LOG_DEBUG; }

static enum abi_io_status outcome(ssize_t result, size_t *moved) {
    *moved = result > 0 ? (size_t)result : 0;
    if (result >= 0)
        return IO_SUCCESS;
    return errno == EAGAIN ? IO_AGAIN : IO_ERROR;
}

enum abi_io_status envoy_dynamic_module_callback_transport_socket_io_read(void *envoy, char *into, size_t length, size_t *moved) {
    return outcome(recv(((struct client *)envoy)->fd, into, length, 0), moved);
}

enum abi_io_status envoy_dynamic_module_callback_transport_socket_io_write(void *envoy, const char *from, size_t length,
                                                                          size_t *moved) {
    return outcome(send(((struct client *)envoy)->fd, from, length, MSG_NOSIGNAL), moved);
}

static void answer(struct client *client, const char *data, size_t length) {
    if (client->output_bytes + length > BUFFER_BYTES)
        abort();
    memcpy(client->output + client->output_bytes, data, length);
    client->output_bytes += length;
}

void envoy_dynamic_module_callback_transport_socket_read_buffer_add(void *envoy, const char *data, size_t length) {
    struct client *client = envoy;
    client->bound = false;
    envoy_dynamic_module_on_http_filter_request_headers(client, client, false);
    if (!client->bound)
        abort();
    answer(client, client->binding, EXPORTER_HEX);
    answer(client, "\n", 1);
    answer(client, data, length);
}

void envoy_dynamic_module_callback_transport_socket_write_buffer_get_slices(void *envoy, struct abi_buffer *slices, size_t *count) {
    const struct client *client = envoy;
    size_t made = 0, at = 0, room = *count;
    /* Uneven slices, so that gathering is exercised. */
    for (size_t size = 7; at < client->output_bytes && made < room; size = size * 3 + 1) {
        size_t part = client->output_bytes - at < size ? client->output_bytes - at : size;
        slices[made++] = (struct abi_buffer){client->output + at, part};
        at += part;
    }
    *count = made;
}

void envoy_dynamic_module_callback_transport_socket_write_buffer_drain(void *envoy, size_t length) {
    struct client *client = envoy;
    if (length > client->output_bytes)
        abort();
    client->output_bytes -= length;
    memmove(client->output, client->output + length, client->output_bytes);
}

size_t envoy_dynamic_module_callback_transport_socket_write_buffer_length(void *envoy) {
    return ((struct client *)envoy)->output_bytes;
}

void envoy_dynamic_module_callback_transport_socket_raise_event(void *envoy, enum abi_connection_event event) {
    struct client *client = envoy;
    if (event == EVENT_CONNECTED && close_on_connect && client->id % CLOSE_EVERY == 0) {
        client->closing = true;
        envoy_dynamic_module_on_transport_socket_close(client, client->socket, EVENT_LOCAL_CLOSE, client->id % 2 == 0);
    }
}

bool envoy_dynamic_module_callback_transport_socket_should_drain_read_buffer(void *envoy) {
    return ((struct client *)envoy)->output_bytes > HIGH_WATER_BYTES;
}

void envoy_dynamic_module_callback_transport_socket_set_is_readable(void *envoy) { ((struct client *)envoy)->readable = true; }

bool envoy_dynamic_module_callback_transport_socket_get_connection_id(void *envoy, uint64_t *id) {
    *id = ((struct client *)envoy)->id;
    return true;
}

bool envoy_dynamic_module_callback_http_filter_get_attribute_int(void *filter, int attribute, uint64_t *value) {
    *value = ((struct client *)filter)->id;
    return attribute == ATTRIBUTE_CONNECTION_ID;
}

bool envoy_dynamic_module_callback_http_set_dynamic_metadata_string(void *filter, struct abi_buffer name_space,
                                                                   struct abi_buffer key, struct abi_buffer value) {
    struct client *client = filter;
    if (strcmp(name_space.data, "signet.tls") != 0 || strcmp(key.data, "tls_exporter") != 0 || value.length != EXPORTER_HEX)
        abort();
    memcpy(client->binding, value.data, EXPORTER_HEX);
    client->bound = true;
    return true;
}

int envoy_dynamic_module_callback_http_filter_config_define_gauge(void *config, struct abi_buffer name, struct abi_buffer *labels,
                                                                 size_t label_count, size_t *id) {
    (void)config, (void)name, (void)labels, (void)label_count;
    *id = 1;
    return METRICS_SUCCESS;
}

int envoy_dynamic_module_callback_http_filter_config_define_counter(void *config, struct abi_buffer name,
                                                                   struct abi_buffer *labels, size_t label_count, size_t *id) {
    (void)config, (void)name, (void)labels, (void)label_count;
    *id = 1;
    return METRICS_SUCCESS;
}

int envoy_dynamic_module_callback_http_filter_config_set_gauge(void *config, size_t id, struct abi_buffer *labels,
                                                              size_t label_count, uint64_t value) {
    (void)config, (void)id, (void)labels, (void)label_count, (void)value;
    return METRICS_SUCCESS;
}

int envoy_dynamic_module_callback_http_filter_config_increment_counter(void *config, size_t id, struct abi_buffer *labels,
                                                                      size_t label_count, uint64_t by) {
    (void)config, (void)id, (void)labels, (void)label_count, (void)by;
    return METRICS_SUCCESS;
}

/* ---- the loop ---- */

static void drop(struct client *client) {
    if (!client->closing)
        envoy_dynamic_module_on_transport_socket_close(client, client->socket, EVENT_REMOTE_CLOSE, false);
    envoy_dynamic_module_on_transport_socket_destroy(client->socket);
    close(client->fd);
    free(client->output);
    memset(client, 0, sizeof *client);
}

static void take_client(int listener, const void *factory) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct client *client = clients;
    while (client < clients + MAX_CLIENTS && client->socket != NULL)
        client++;
    if (fd < 0 || client == clients + MAX_CLIENTS) {
        if (fd >= 0)
            close(fd);
        return;
    }
    client->fd = fd;
    client->id = next_id++;
    client->output = malloc(BUFFER_BYTES);
    client->socket = envoy_dynamic_module_on_transport_socket_new(factory, client);
    if (client->output == NULL || client->socket == NULL)
        abort();
    envoy_dynamic_module_on_transport_socket_set_callbacks(client, client->socket);
}

static void serve(struct client *client, short events) {
    struct abi_io_result result = {IO_KEEP_OPEN, 0, false};
    bool full = client->output_bytes > HIGH_WATER_BYTES;
    if ((client->readable || (events & (POLLIN | POLLHUP | POLLERR)) != 0) && !full) {
        client->readable = false;
        result = envoy_dynamic_module_on_transport_socket_do_read(client, client->socket);
    }
    bool finished = result.end_stream;
    if (result.action == IO_KEEP_OPEN && (finished || client->output_bytes > 0 || (events & POLLOUT) != 0))
        result = envoy_dynamic_module_on_transport_socket_do_write(client, client->socket, finished);
    struct abi_buffer text;
    envoy_dynamic_module_on_transport_socket_get_protocol(client, client->socket, &text);
    envoy_dynamic_module_on_transport_socket_get_failure_reason(client, client->socket, &text);
    if (result.action == IO_CLOSE || finished || client->closing)
        drop(client);
}

static void turn(int listener, const void *factory) {
    struct pollfd watched[MAX_CLIENTS + 1];
    nfds_t count = 0;
    int wait_ms = 200;
    watched[count++] = (struct pollfd){listener, POLLIN, 0};
    for (size_t index = 0; index < MAX_CLIENTS; index++) {
        const struct client *client = &clients[index];
        bool full = client->output_bytes > HIGH_WATER_BYTES;
        short events = (short)((full ? 0 : POLLIN) | (client->output_bytes > 0 ? POLLOUT : 0));
        watched[count++] = (struct pollfd){client->socket == NULL ? -1 : client->fd, events, 0};
        if (client->readable && !full)
            wait_ms = 0;
    }
    if (poll(watched, count, wait_ms) < 0)
        return;
    for (size_t index = 0; index < MAX_CLIENTS; index++)
        if (clients[index].socket != NULL && (watched[index + 1].revents != 0 || clients[index].readable))
            serve(&clients[index], watched[index + 1].revents);
    if (watched[0].revents != 0)
        take_client(listener, factory);
}

static void end(int signal_number) {
    (void)signal_number;
    ended = 1;
}

static int listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, MAX_CLIENTS) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        abort();
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argument_count, char **arguments) {
    if (argument_count == 2 && strcmp(arguments[1], "--abi") == 0)
        return envoy_dynamic_module_on_program_init() == NULL ? 0 : 1;
    if (argument_count == 3 && strcmp(arguments[1], "--config") == 0) {
        const void *made = envoy_dynamic_module_on_transport_socket_factory_config_new(
            NULL, (struct abi_buffer){"tls", 3}, (struct abi_buffer){arguments[2], strlen(arguments[2])}, false);
        if (made != NULL)
            envoy_dynamic_module_on_transport_socket_factory_config_destroy(made);
        return made == NULL ? 1 : 0;
    }
    if (argument_count != 3)
        return 2;
    close_on_connect = getenv("HOST_CLOSE_ON_CONNECT") != NULL;
    char config[2 * MAX_PATH_BYTES];
    snprintf(config, sizeof config, "{\"certificate_file\":\"%s\",\"private_key_file\":\"%s\",\"max_connections\":32}", arguments[1],
             arguments[2]);
    signal(SIGTERM, end);
    const void *registration = envoy_dynamic_module_on_http_filter_config_new(clients, (struct abi_buffer){"", 0},
                                                                             (struct abi_buffer){"", 0});
    const void *factory = envoy_dynamic_module_on_transport_socket_factory_config_new(
        NULL, (struct abi_buffer){"tls", 3}, (struct abi_buffer){config, strlen(config)}, false);
    if (factory == NULL || registration == NULL)
        return 2;
    int listener = listen_on_loopback();
    while (!ended)
        turn(listener, factory);
    for (size_t index = 0; index < MAX_CLIENTS; index++)
        if (clients[index].socket != NULL)
            drop(&clients[index]);
    uint64_t left = exporter_table_count();
    envoy_dynamic_module_on_http_filter_config_destroy(registration);
    envoy_dynamic_module_on_transport_socket_factory_config_destroy(factory);
    close(listener);
    printf("bindings left %" PRIu64 "\n", left);
    return left == 0 ? 0 : 1;
}
