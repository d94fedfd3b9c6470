"""What a launch, a resume and a check of nodes ask and write before anything trains."""
