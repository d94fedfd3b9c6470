"""Cases as they lie on disk: found, read, checked, on one grid, in the labels and types in which they are trained."""
