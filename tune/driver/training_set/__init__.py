"""A set of trainings on all GPUs, one process per GPU."""
