"""The deterministic part of a replica. Its decisions depend only on the log, the time and the messages it
is given. Pure.
"""
