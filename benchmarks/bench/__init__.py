"""How fast Castor's parts are, beside the same work done barely: `python -m benchmarks.bench`."""
