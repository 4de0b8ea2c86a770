from metastore._core.engine import MemoryEngine
from metastore._core.ordered_map import OrderedMap

def check(tree: OrderedMap) -> None: ...  # verify the tree's own rules; raises AssertionError
def check_counts(engine: MemoryEngine) -> None: ...  # the same for an engine's tree, with its counts of living keys
