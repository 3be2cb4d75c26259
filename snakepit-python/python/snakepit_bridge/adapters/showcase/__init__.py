"""An adapter that demonstrates the features of tools."""
