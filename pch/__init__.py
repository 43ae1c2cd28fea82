"""The Proof-Carrying Handshake: the protocol core, free of I/O, and its client."""
