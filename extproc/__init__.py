"""The filter service that Envoy asks about every request."""
