/* Hooks that Envoy looks up in every module with an HTTP filter and that this filter has no use for: each lets the stream
 * go on as it is. Their arguments are never looked at, so none are declared; the calling convention allows that. */
#include "abi.h"

#define CONTINUES(hook)                                            \
    HOOK int envoy_dynamic_module_on_http_filter_##hook(void);     \
    int envoy_dynamic_module_on_http_filter_##hook(void) { return FILTER_CONTINUE; }
#define IGNORES(hook)                                              \
    HOOK void envoy_dynamic_module_on_http_filter_##hook(void);    \
    void envoy_dynamic_module_on_http_filter_##hook(void) {}

CONTINUES(request_body)
CONTINUES(request_trailers)
CONTINUES(response_headers)
CONTINUES(response_body)
CONTINUES(response_trailers)
CONTINUES(local_reply)
IGNORES(stream_complete)
IGNORES(destroy)
IGNORES(scheduled)
IGNORES(http_callout_done)
IGNORES(http_stream_headers)
IGNORES(http_stream_data)
IGNORES(http_stream_trailers)
IGNORES(http_stream_complete)
IGNORES(http_stream_reset)
IGNORES(downstream_above_write_buffer_high_watermark)
IGNORES(downstream_below_write_buffer_low_watermark)
IGNORES(config_scheduled)
IGNORES(config_http_callout_done)
IGNORES(config_http_stream_headers)
IGNORES(config_http_stream_data)
IGNORES(config_http_stream_trailers)
IGNORES(config_http_stream_complete)
IGNORES(config_http_stream_reset)
