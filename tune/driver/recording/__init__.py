"""What is written and reported while a sweep runs."""
