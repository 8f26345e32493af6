"""The code interpreter: a Python kernel in a jail for each session, a pool of warm ones, and the tool that a model calls."""
