"""Receipts: canonical, chained, durable records of every decision."""
