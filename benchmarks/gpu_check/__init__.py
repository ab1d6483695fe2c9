"""`make gpu-check`: what Castor does on a GPU, in ten minutes, without a network: a table and gpu-check.json.

Each part runs in a process of its own, so that one that crashes or fills the memory fails alone. A part whose package
is not installed is skipped by name. `python -m benchmarks.gpu_check --device cpu` runs the parts on small shapes.
"""
