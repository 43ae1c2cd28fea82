"""The replay guard: one contract, three stores (docs/reference/pch.md §2, §4 step 9)."""
