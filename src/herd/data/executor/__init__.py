"""Jobs over shards: what a plan of work is, and who carries it out. Local processes, Slurm arrays and Ray run the same plan."""
