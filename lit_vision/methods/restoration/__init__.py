"""Restoration of images: denoising, JPEG artifacts, super-resolution, in-painting, colors."""
