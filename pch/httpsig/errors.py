"""What the RFC 9421 layer refuses. No message carries a value taken from the HTTP message or from a key."""

from __future__ import annotations


class HttpSigError(ValueError):
    """A signature field, or a component that it covers, breaks RFC 9421 or a limit of this implementation."""


class FieldSyntaxError(HttpSigError):
    """A structured field does not follow its grammar or its declared types, or is over a limit."""


class DuplicateError(HttpSigError):
    """A label, a parameter, a digest algorithm or a covered component occurs twice."""


class ComponentError(HttpSigError):
    """A component identifier is not valid, or the component has no single value in this message."""


class NonCanonicalError(HttpSigError):
    """A member differs from its own RFC 9651 serialisation."""


class AlgorithmMismatchError(HttpSigError):
    """The `alg` parameter contradicts the key that is to sign."""
