"""Campaigns that damage, kill and starve the commands of this package, and count what survives.

    python -m benchmarks.reliability                  # all campaigns
    python -m benchmarks.reliability damage faults    # some of them

docs/reliability.md describes the campaigns and their results.
"""
