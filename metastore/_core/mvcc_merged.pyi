"""A walk over an overlay and the engine below it. Only compiled modules use it."""
