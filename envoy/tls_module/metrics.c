/* Envoy offers metrics to HTTP filters only, so the counts of the transport socket are shown through whichever filter
 * configurations are alive. They share one stats scope: counters are added through one of them, gauges set through it. */
#include <string.h>

#include "module.h"

enum { MAX_REGISTRATIONS = 64 };

static const char *const counter_names[COUNTER_KINDS] = {
    [COUNT_HANDSHAKES] = "signet_tls.handshakes",
    [COUNT_HANDSHAKE_FAILURES] = "signet_tls.handshake_failures",
    [COUNT_CONNECTIONS_REFUSED] = "signet_tls.connections_refused",
    [COUNT_CERTIFICATE_RELOADS] = "signet_tls.certificate_reloads",
    [COUNT_CERTIFICATE_RELOAD_FAILURES] = "signet_tls.certificate_reload_failures",
    [COUNT_REQUESTS_WITHOUT_BINDING] = "signet_tls.requests_without_binding",
};

struct registration {
    void *envoy_config; /* null: free */
    size_t counters[COUNTER_KINDS];
    size_t connections_gauge;
    size_t bindings_gauge;
};

/* lock owns all of these. It is held while Envoy is called, so that a configuration cannot die meanwhile. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct registration registrations[MAX_REGISTRATIONS];
static struct registration *active;
static uint64_t connections;

static struct abi_buffer text(const char *value) { return (struct abi_buffer){value, strlen(value)}; }

static bool define_metrics(struct registration *registration, void *envoy_config) {
    bool defined = true;
    for (size_t kind = 0; kind < COUNTER_KINDS; kind++)
        defined &= envoy_dynamic_module_callback_http_filter_config_define_counter(
                       envoy_config, text(counter_names[kind]), NULL, 0, &registration->counters[kind]) == METRICS_SUCCESS;
    defined &= envoy_dynamic_module_callback_http_filter_config_define_gauge(
                   envoy_config, text("signet_tls.connections"), NULL, 0, &registration->connections_gauge) == METRICS_SUCCESS;
    defined &= envoy_dynamic_module_callback_http_filter_config_define_gauge(
                   envoy_config, text("signet_tls.bindings"), NULL, 0, &registration->bindings_gauge) == METRICS_SUCCESS;
    return defined;
}

static void show_gauges(void) {
    if (active == NULL)
        return;
    envoy_dynamic_module_callback_http_filter_config_set_gauge(active->envoy_config, active->connections_gauge, NULL, 0,
                                                              connections);
    envoy_dynamic_module_callback_http_filter_config_set_gauge(active->envoy_config, active->bindings_gauge, NULL, 0,
                                                              exporter_table_count());
}

const void *metrics_attach(void *envoy_config) {
    struct registration *chosen = NULL;
    pthread_mutex_lock(&lock);
    for (size_t index = 0; index < MAX_REGISTRATIONS && chosen == NULL; index++)
        if (registrations[index].envoy_config == NULL)
            chosen = &registrations[index];
    if (chosen != NULL && define_metrics(chosen, envoy_config)) {
        chosen->envoy_config = envoy_config;
        active = chosen;
        show_gauges();
    } else {
        chosen = NULL;
    }
    pthread_mutex_unlock(&lock);
    return chosen;
}

void metrics_detach(const void *registration) {
    pthread_mutex_lock(&lock);
    for (size_t index = 0; index < MAX_REGISTRATIONS; index++)
        if (&registrations[index] == registration)
            registrations[index].envoy_config = NULL;
    if (active == registration) {
        active = NULL;
        for (size_t index = 0; index < MAX_REGISTRATIONS && active == NULL; index++)
            if (registrations[index].envoy_config != NULL)
                active = &registrations[index];
        show_gauges();
    }
    pthread_mutex_unlock(&lock);
}

void metrics_count(enum metric_counter counter) {
    pthread_mutex_lock(&lock);
    if (active != NULL)
        envoy_dynamic_module_callback_http_filter_config_increment_counter(active->envoy_config, active->counters[counter],
                                                                          NULL, 0, 1);
    pthread_mutex_unlock(&lock);
}

void metrics_connection_opened(void) {
    pthread_mutex_lock(&lock);
    connections++;
    show_gauges();
    pthread_mutex_unlock(&lock);
}

void metrics_connection_closed(void) {
    pthread_mutex_lock(&lock);
    connections--;
    show_gauges();
    pthread_mutex_unlock(&lock);
}

void metrics_bindings_changed(void) {
    pthread_mutex_lock(&lock);
    show_gauges();
    pthread_mutex_unlock(&lock);
}
