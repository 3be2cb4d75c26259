"""An adapter that shows what tools can do."""
