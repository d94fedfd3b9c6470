"""The nodes of a Ray cluster: what each tells of itself (facts, folders), and what of that is wrong (checks)."""
