"""Tools that reach the web: one page by its URL, searches by a provider, Wolfram Alpha."""
