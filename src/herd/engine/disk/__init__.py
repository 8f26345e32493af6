"""The prefix cache on disk: keys and values of full blocks in files, found again after eviction and after a restart."""
