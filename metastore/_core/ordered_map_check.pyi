from metastore._core.ordered_map import OrderedMap

def check(tree: OrderedMap) -> None: ...  # verify the tree's own rules; raises AssertionError
