"""RFC 9421 HTTP Message Signatures, one file per section, free of I/O."""
