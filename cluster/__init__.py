"""Ways to get a Ray cluster: templates to copy and edit, and no Python."""
