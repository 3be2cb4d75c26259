"""The adapter of docs/telemetry.md, which measures its work."""

from snakepit_bridge import telemetry


def summarize(text: str) -> str:
    """Shorten a text to its first words."""
    with telemetry.span("text.summarize", {"language": "en"}):
        words = text.split()
        telemetry.emit("text.size", {"words": len(words), "bytes": len(text.encode())})
        return " ".join(words[:3])
