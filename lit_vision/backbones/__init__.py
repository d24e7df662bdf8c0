"""Timm models behind one interface: features, tokens, feature maps, adapters."""
