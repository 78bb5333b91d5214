"""The choices that the package offers: names, ranges and rules, which a program checks before it imports JAX.

Nothing here imports JAX, or a package that imports it. The implementations, in the other packages, import from here.
"""
