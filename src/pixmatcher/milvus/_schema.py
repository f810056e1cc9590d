"""The collections of Milvus that a collection consists of: NAME, NAME_notes and NAME_thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Space
from ._connection import Connection
from ._rows import NUMBER_FIELDS, TEXT_FIELDS, TRUTH_FIELDS, vector_field

NOTES, THUMBNAILS = "_notes", "_thumbnails"
"""The endings of the names."""


def create_tables(connection: Connection, name: str, spaces: Mapping[str, Space]) -> None:
    """Create what does not exist yet. A process that is killed meanwhile leaves a part, which is used again."""
    from pymilvus import DataType

    for ending in (NOTES, THUMBNAILS):
        create_notes(connection, name + ending)
    schema = _new_schema(connection)
    for field, most in TEXT_FIELDS.items():
        schema.add_field(field, DataType.VARCHAR, max_length=most)
    for field in NUMBER_FIELDS:
        schema.add_field(field, DataType.INT64)
    for field in TRUTH_FIELDS:
        schema.add_field(field, DataType.BOOL)
    vectors = {vector_field(spaces, space.name): space.dimension for space in spaces.values()}
    for field, dimension in vectors.items():
        schema.add_field(field, DataType.FLOAT_VECTOR, dim=dimension)
    _create(connection, name, schema, [*vectors])


def create_notes(connection: Connection, name: str) -> None:
    """Create a collection of Milvus for notes or thumbnails, unless it exists."""
    from pymilvus import DataType

    schema = _new_schema(connection)
    for field in ("kind", "key", "value"):
        schema.add_field(field, DataType.VARCHAR, max_length=65_535 if field == "value" else 32_768)
    for field in ("part", "parts"):
        schema.add_field(field, DataType.INT64)
    # Milvus keeps no collection without vectors.
    schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)
    _create(connection, name, schema, ["unused"])


def _new_schema(connection: Connection) -> Any:
    from pymilvus import DataType

    schema = connection.call_local("create_schema", auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    return schema


def _create(connection: Connection, name: str, schema: Any, vectors: list[str]) -> None:
    if connection.call("has_collection", name):
        return
    indexes = connection.call_local("prepare_index_params")
    for field in vectors:
        indexes.add_index(field_name=field, index_type="FLAT", metric_type="IP")
    connection.call("create_collection", name, schema=schema, index_params=indexes)
