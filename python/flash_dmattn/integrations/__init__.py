"""Attention of this package inside other libraries; each module imports its library, this one none."""
