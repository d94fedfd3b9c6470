"""Triton kernels for the memory-bound parts of a training step besides the convolutions, forward and backward.

The plain PyTorch versions, with which the tests compare the kernels, are in unet3d.py and losses.py, which call the
kernels on a GPU. All sums are in float32. Tensors are in channels-last memory format, or are copied to it; region_sums
takes logits and targets in every format whose voxels have one stride.
"""
