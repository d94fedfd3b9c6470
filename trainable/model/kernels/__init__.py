"""Triton kernels of what reads and writes a step's largest tensors beside the convolutions, forward and backward.

The plain versions, against which they are tested, stand in unet3d.py and losses.py, which call these on a GPU. All
tensors lie channels last, all sums are in float32.
"""
