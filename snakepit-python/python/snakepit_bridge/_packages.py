"""Conversions of tables, images and tensors. Imports a package only for an object of it, or to load one."""

from __future__ import annotations

import sys
from io import BytesIO

from snakepit_bridge._encoded import Encoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Encode = Callable[[Any], Any]

#: The modes of images that PNG keeps. TIFF keeps the others.
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})


def class_named(name: str) -> Any:
    """Return a class of a package that is imported. ``None`` if it is not."""
    package, _, attribute = name.partition(".")
    module = sys.modules.get(package)
    if package == "PIL":
        module, attribute = sys.modules.get("PIL.Image"), "Image"
    return getattr(module, attribute, None)


def kind_of(cls: type) -> str | None:
    """Return the name of the supported class that a class is, or derives from."""
    for name in _LOADERS:
        known = class_named(name)
        if isinstance(known, type) and issubclass(cls, known):
            return name
    return None


def of_pandas(cls: type) -> Encode | None:
    """Return the conversion of a pandas class."""
    kind = kind_of(cls)
    if kind is None:
        index = class_named("pandas.Index")
        return _list if isinstance(index, type) and issubclass(cls, index) else None
    return lambda value: _pandas(value, kind)


def _list(value: Any) -> Any:
    return value.tolist()


def _pandas(value: Any, kind: str) -> Encoded:
    try:
        import pyarrow as pa
    except ImportError:
        raise TypeError(
            f"a `{kind}` needs pyarrow; install it, or convert the table with to_dict('list') or to_dict('records')"
        ) from None
    frame = value
    if kind != "pandas.DataFrame":
        # A column without a name would lose it.
        frame = value.to_frame(name="" if value.name is None else value.name)
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"a `{kind}` has a column that Arrow cannot represent: {error}") from None
    if kind != "pandas.DataFrame":
        is_named = str(value.name is not None).lower()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), "snakepit.named": is_named})
    return _stream(table, kind)


def _stream(table: Any, kind: str) -> Encoded:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return Encoded(sink.getvalue().to_pybytes(), "arrow", kind)


def of_polars(cls: type) -> Encode | None:
    """Return the conversion of a polars class."""
    kind = kind_of(cls)
    if kind is None:
        return _lazy if cls.__name__ == "LazyFrame" else None
    return lambda value: _polars(value, kind)


def _lazy(value: Any) -> Any:
    del value
    raise TypeError("it is a `polars.LazyFrame`, which is a query; send its result with collect()")


def _polars(value: Any, kind: str) -> Encoded:
    frame = value if kind == "polars.DataFrame" else value.to_frame()
    sink = BytesIO()
    frame.write_ipc_stream(sink)
    return Encoded(sink.getvalue(), "arrow", kind)


def of_pyarrow(cls: type) -> Encode | None:
    """Return the conversion of a pyarrow class."""
    kind = kind_of(cls)
    return None if kind is None else lambda value: _pyarrow(value, kind)


def _pyarrow(value: Any, kind: str) -> Encoded:
    import pyarrow as pa

    if kind in ("pyarrow.Array", "pyarrow.ChunkedArray"):
        return _stream(pa.table({"": value}), kind)
    return _stream(value, kind)


def of_duckdb(cls: type) -> Encode | None:
    """Return the conversion of a duckdb class."""
    relation = class_named("duckdb.DuckDBPyRelation")
    return _relation if isinstance(relation, type) and issubclass(cls, relation) else None


def _relation(value: Any) -> Encoded:
    # The second name is that of duckdb before 1.4.
    read = getattr(value, "to_arrow_table", None) or value.fetch_arrow_table
    try:
        table = read()
    except ImportError:
        raise TypeError("a `duckdb` relation needs pyarrow; install it, or send its rows with fetchall()") from None
    return _stream(table, "pyarrow.Table")


def of_torch(cls: type) -> Encode | None:
    """Return the conversion of a torch class."""
    kind = kind_of(cls)
    return _torch if kind == "torch.Tensor" else None


def _torch(value: Any) -> Any:
    if value.device.type != "cpu":
        raise TypeError(f"a tensor is on the device `{value.device}`; move it with .cpu()")
    if value.layout is not sys.modules["torch"].strided:
        raise TypeError(f"a tensor has the layout `{value.layout}`; convert it with .to_dense()")
    try:
        return value.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"a tensor of `{value.dtype}` has no numpy form ({error}); convert it, for example with .float()"
        ) from None


def of_pil(cls: type) -> Encode | None:
    """Return the conversion of a Pillow class."""
    return _image if kind_of(cls) == "PIL.Image.Image" else None


def _image(value: Any) -> Encoded:
    sink = BytesIO()
    if value.mode in _PNG_MODES:
        # Fast, because values travel within a machine most of the time.
        value.save(sink, "PNG", compress_level=1)
        return Encoded(sink.getvalue(), "png", "PIL.Image.Image")
    value.save(sink, "TIFF")
    return Encoded(sink.getvalue(), "tiff", "PIL.Image.Image")


def load(encoded: Encoded, name: str = "") -> Any:
    """Decode an object, as the class of this name, or as its own class."""
    name = name or encoded.class_name
    loader = _LOADERS.get(name)
    if loader is None:
        raise ValueError(
            f"bytes of format `{encoded.format}` are a `{name or 'unknown class'}`, which cannot be loaded"
        )
    return loader(encoded)


def _arrow(data: bytes) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()


def _load_pandas(data: Encoded) -> Any:
    return _arrow(data).to_pandas()


def _load_pandas_series(data: Encoded) -> Any:
    table = _arrow(data)
    series = table.to_pandas().iloc[:, 0]
    if (table.schema.metadata or {}).get(b"snakepit.named") == b"false":
        series.name = None
    return series


def _load_polars(data: Encoded) -> Any:
    import polars

    return polars.read_ipc_stream(BytesIO(data))


def _load_polars_series(data: Encoded) -> Any:
    return _load_polars(data).to_series(0)


def _load_batch(data: Encoded) -> Any:
    batches = _arrow(data).combine_chunks().to_batches()
    if batches:
        return batches[0]
    import pyarrow as pa

    return pa.RecordBatch.from_pylist([], schema=_arrow(data).schema)


def _load_chunked(data: Encoded) -> Any:
    return _arrow(data).column(0)


def _load_array(data: Encoded) -> Any:
    array = _arrow(data).column(0).combine_chunks()
    return array.chunk(0) if hasattr(array, "num_chunks") and array.num_chunks == 1 else array


def _load_image(data: Encoded) -> Any:
    from PIL import Image

    image = Image.open(BytesIO(data))
    image.load()
    return image


#: The functions that decode an object, by class.
_LOADERS: dict[str, Callable[[Any], Any]] = {
    "pandas.DataFrame": _load_pandas,
    "pandas.Series": _load_pandas_series,
    "polars.DataFrame": _load_polars,
    "polars.Series": _load_polars_series,
    "pyarrow.Table": _arrow,
    "pyarrow.RecordBatch": _load_batch,
    "pyarrow.ChunkedArray": _load_chunked,
    "pyarrow.Array": _load_array,
    "PIL.Image.Image": _load_image,
    "torch.Tensor": lambda data: data,
}
