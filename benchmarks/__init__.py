"""How near the limit we are, as ratios that anyone can measure again: `python -m benchmarks [NAME...] --json FILE`."""
