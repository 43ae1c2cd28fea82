"""Generated from the service's .proto; see docs/reference/kms.md."""
