"""What is measured, and how. `python -m benchmarks` in a checkout is `python -m altclip_fast.benchmarks` elsewhere."""
