"""Video classification: an image backbone on the frames of a clip, and four ways to join them."""
