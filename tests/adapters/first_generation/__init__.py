"""Adapters with the API of the original Snakepit, in its three styles. tests/tests/original.rs serves them."""
