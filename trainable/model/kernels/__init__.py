"""Triton kernels for the memory-bound parts of a training step besides the convolutions, forward and backward.

The plain PyTorch versions, with which the tests compare them, are in unet3d.py and losses.py, which call these kernels
on a GPU. All tensors are in channels-last memory format, all sums are in float32.
"""
