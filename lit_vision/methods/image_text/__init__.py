"""Images and their captions in one space (CLIP, SigLIP, LiT): losses, text tower, network, LightningModule."""
