"""What is measured before a launch: seconds, memory, how many trials may share a GPU."""
