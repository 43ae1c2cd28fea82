"""A client that signs every request for the connection it is sent on (docs/reference/pch.md)."""
