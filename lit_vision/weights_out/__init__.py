"""`lit-vision export --format timm | transformers | hub`: weights under the names that other projects load, checked before they get a place.

timm: one safetensors file for `timm.create_model(..., checkpoint_path=FILE)`. transformers: a folder for `ViTMAEForPreTraining`.
hub: a folder for the Hugging Face Hub that timm loads by `hf-hub:` or `local-dir:`, with a model card made from the run's results.
"""

FORMATS = ("timm", "transformers", "hub")
