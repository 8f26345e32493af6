"""The Model Context Protocol, both ways: tools of other servers under a namespace and a pinned description, and herd's tools for others."""
