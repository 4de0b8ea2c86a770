from metastore._core.mvcc import Store

SWEPT_BY_RANGES: int  # revisions from which on a sweep may remove ranges

def sweep_slice(store: Store, budget: int) -> bool:
    """Remove compacted records, looking at about `budget` records. Return True while there is more. Raises what the
    engine raises; after EngineBusy the same slice can be tried again."""
