"""Custody providers: one file each."""
