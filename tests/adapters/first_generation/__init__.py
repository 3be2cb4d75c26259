"""Adapters with the API of the original Snakepit, in its three styles. tests/tests/original_adapters.rs serves them."""
