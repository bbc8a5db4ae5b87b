"""One file per pruning method, discovered by its name; see `compressor/method.py` and CONTRIBUTING.md."""
