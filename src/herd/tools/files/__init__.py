"""Tools over a folder: read, list, search, look into archives; and an index of its texts for searches without a network."""
