# Envoy with Signet's TLS module, which is built on the image it runs on and refuses any other version of Envoy.
FROM envoyproxy/envoy:v1.40.0 AS module
RUN apt-get update && apt-get install -y --no-install-recommends gcc make libc6-dev libssl-dev
COPY envoy/tls_module /src
RUN make -C /src clean all

FROM envoyproxy/envoy:v1.40.0
RUN apt-get update && apt-get install -y --no-install-recommends libssl3 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home signet \
    && install -d -o signet -g signet -m 0700 /var/lib/signet
COPY --from=module /src/build/libsignet_tls.so /opt/signet/tls_module/libsignet_tls.so
ENV ENVOY_DYNAMIC_MODULES_SEARCH_PATH=/opt/signet/tls_module
USER 10001:10001
ENTRYPOINT []
