"""What the configs of this bundle use besides MONAI."""
