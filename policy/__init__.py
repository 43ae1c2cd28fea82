"""Policy: what a verified request may do."""
