"""Adapters of this package."""
