"""Arrays that arrive from Rust, and arrays that Python makes in every memory layout."""

from typing import Any

import numpy as np

from snakepit_bridge import BaseAdapter, tool


class Arrays(BaseAdapter):
    """Tools that receive or return numpy arrays."""

    @tool
    def echo(self, value: Any) -> Any:
        """Returns the value."""
        return value

    @tool
    def brighten(self, image: np.ndarray) -> Any:
        """Doubles each value, up to 1."""
        return np.minimum(image * 2, 1)

    @tool
    def describe(self, value: Any) -> list[Any]:
        """Returns the dtype and the shape of an array, and its items as text."""
        return [str(value.dtype), list(value.shape), [str(item) for item in value.ravel().tolist()]]

    @tool
    def through_host(self, image: Any) -> Any:
        """Adds an array to the one that a host tool returns for it."""
        return image + self.session_context.call_host_tool("double", image=image)

    @tool
    def make(self, dtype: str, layout: str) -> Any:
        """Returns the numbers 0 to 5 as two rows, in this memory layout."""
        rows = np.arange(6).reshape(2, 3).astype(dtype)
        match layout:
            case "fortran":
                return np.asfortranarray(rows)
            case "big":
                return rows.astype(rows.dtype.newbyteorder(">"))
            case "strided":
                return np.repeat(rows, 2, axis=1)[:, ::2]
            case "scalar":
                return np.array(rows[1, 2])
            case "empty":
                return rows[:0]
            case _:
                return rows
