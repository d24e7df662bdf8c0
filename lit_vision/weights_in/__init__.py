"""`lit-vision import FILE --out OUT`: what another project's file holds (target.py), and the one safetensors file it becomes (file.py)."""
