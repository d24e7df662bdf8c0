"""Image captioning: a small transformer decoder on image features."""
