"""One revision for each family of objects, in order."""
