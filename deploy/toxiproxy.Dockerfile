# Toxiproxy from the same locked module that the tests build.
FROM golang:1.25.3-bookworm AS build
COPY tools/go_parts/toxiproxy /src
RUN cd /src && CGO_ENABLED=0 go build -mod=readonly -trimpath -o /toxiproxy github.com/Shopify/toxiproxy/v2/cmd/server

FROM busybox:1.37.0
COPY --from=build /toxiproxy /usr/local/bin/toxiproxy
USER 10001:10001
