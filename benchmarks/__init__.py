"""What is measured, and how: `python -m benchmarks --help`. It runs in a checkout; it is not installed."""
