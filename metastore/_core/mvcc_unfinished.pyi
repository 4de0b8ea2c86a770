from metastore._core.mvcc import Store

def spill_now(store: Store) -> None:
    """For tests: hand what an unfinished entry has changed to the engine. Raises EngineBusy and what the engine
    raises."""
