"""`herd bench`: what a model does on this machine, and what a server does under load. For peers side by side there is benchmarks/."""
