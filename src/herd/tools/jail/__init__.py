"""Jails for code that nobody vouches for: bubblewrap, else Landlock, else none and no code runs.

`choose` says which works here; `process` starts one and ends all that is in it. What runs inside is the business of `code`.
"""
