"""Ratios in one run: flatfleet beside the SDK's own classes and huey. `python -m benchmarks --help`."""
