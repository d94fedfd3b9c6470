"""The processes that train: what runs in them, how they join, and what watches them."""
