"""A run of curation: its configuration, the plan that follows from it, what each step does, and the report."""
