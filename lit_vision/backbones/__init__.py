"""A timm model behind one contract."""
