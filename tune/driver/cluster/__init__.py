"""Ray's cluster: connected to or started, its nodes, and Ray's private names."""
