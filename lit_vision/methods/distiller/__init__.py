"""Training of a small classifier by a larger network that is trained already (distiller.py); teacher.py opens it."""
