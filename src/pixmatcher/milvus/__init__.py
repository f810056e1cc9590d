"""A collection in a Milvus vector database: `-c milvus:PATH` (Milvus Lite), `-c milvus://HOST:19530/NAME` (a server).

May import `collection`, and the modules that every package may import. pymilvus is imported when a store is opened.
"""

from .store import MilvusCollection, open_milvus

__all__ = ["MilvusCollection", "open_milvus"]
