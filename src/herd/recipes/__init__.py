"""Training runs as Python functions: each returns one full config; `pipeline.run_recipe` carries it out.

A package, not a folder beside it, so that an installed herd carries its recipes.
"""
