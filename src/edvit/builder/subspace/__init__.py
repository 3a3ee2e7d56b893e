"""Pruning by class subspace: rotate the residual stream to what a class group uses, cut there, refit in closed form.

The same cut for all sub-models reads from top to bottom in `cut`. The method: docs/guide/subspace.md.
"""
