"""Type hints as converters: from JSON to the arguments of a tool, from its result to JSON, and to JSON Schema.

A worker imports this package only if a tool has a hint beyond the plain ones. The modules for classes, numpy and
pydantic are imported only if such a type appears.
"""
