"""A whole cluster in one process on virtual time: the real Raft core, Ready driver, batches, log bytes and repair, and
store, under a network and disks that fail as a seed says. See runner.py; `python -m tests.sim --help` runs it for long.

What stands in for the real thing: sockets (network.py), the streams of members that greet each other (greetings.py),
files and the disk thread (disk.py), and the loop (clock.py, node.py). `metastore/member/assembly.py` puts the rest
together as for a node. checker.py knows what must hold, mishaps.py what goes wrong, scripts.py and absences.py how it
goes wrong in a certain order, workload.py what clients do, watchers.py what they watch, plants.py the bugs that the
simulator must find.
"""
