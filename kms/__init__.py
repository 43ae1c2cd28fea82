"""Key custody (its own process); only its client interface is used by the filter."""
