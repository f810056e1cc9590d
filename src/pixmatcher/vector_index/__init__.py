"""Vector indexes: vectors in, row numbers out. Exact, trained and scanning indexes, their files and their calibration.

An index belongs to one space of a collection. It holds rows of a `VectorFile`, from which it can always be rebuilt.
It does not depend on collections or images. May import: errors, records and the modules beside the packages.

FAISS is imported only by the functions that need it.
"""

from ._kinds import (
    EXACT,
    SCAN,
    TRAINED,
    calibrate_index,
    index_kind,
    new_index,
    new_scan_index,
    rebuild_if_needed,
    update_takes_long,
)
from ._protocol import SavableIndex, VectorIndex, is_savable
from ._storage import (
    Stamp,
    index_files,
    index_is_intact,
    load_index,
    read_intact_stamp,
    read_stamp,
    save_index,
)
from ._target import (
    Calibration,
    IndexTarget,
    OperatingPoint,
    check_memory_limit,
    read_target,
    save_target,
    target_path,
)
from .vectors import Float16, Float32, RowMask, Rows, VectorFile, row_checksums, to_stored

__all__ = [
    "EXACT",
    "SCAN",
    "TRAINED",
    "Calibration",
    "Float16",
    "Float32",
    "IndexTarget",
    "OperatingPoint",
    "RowMask",
    "Rows",
    "SavableIndex",
    "Stamp",
    "VectorFile",
    "VectorIndex",
    "calibrate_index",
    "check_memory_limit",
    "index_files",
    "index_is_intact",
    "index_kind",
    "is_savable",
    "load_index",
    "new_index",
    "new_scan_index",
    "read_intact_stamp",
    "read_stamp",
    "read_target",
    "rebuild_if_needed",
    "row_checksums",
    "save_index",
    "save_target",
    "target_path",
    "to_stored",
    "update_takes_long",
]
