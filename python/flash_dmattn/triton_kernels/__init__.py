"""Attention in Triton. Importing any module of this package imports triton, which the backend does only when asked."""
