"""`python -m benchmarks`: this project and its peers, on the same tensors, in one run."""
