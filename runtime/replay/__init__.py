"""Replay: a policy against a recorded trace in simulated time. A production policy is decided by the production code.

`traces` reads, `simulator` runs the fleet, `windows` measures it, `candidates` and `baselines` decide, `results` tells,
`timeline` draws; `decisions` decides again what a fleet has recorded.
"""
