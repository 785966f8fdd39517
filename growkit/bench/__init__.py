"""Benchmarks of growkit itself: on how many models growth works, and what surgery costs.

Read `coverage` for the flow, `measure` for what is measured of one model, `summary` for the numbers that come out.
"""

__all__ = []
