"""Runs of revisions of which a compaction leaves nothing, so that an engine removes their change records at once."""

LEAST_RUN: int  # revisions of a range at least
