"""Pages and an API in the browser: a small ASGI app behind one guard. Needs lit-vision[serve]."""
