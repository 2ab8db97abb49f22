"""Scaling policies: pure functions from what is observed to how many workers are wanted, and why. No I/O, no clock."""
