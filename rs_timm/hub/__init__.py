"""Save, push and pull: a folder, or a repository of the Hugging Face hub, that timm itself can load.

config.json is written by timm. What it has no field for (the ensemble weights of training, what the weights were made
from) stands at its top level under 'rs_timm', where timm leaves it alone.
"""
from .remote import HubError, from_pretrained, push_to_hub
from .saving import save_pretrained

__all__ = ['HubError', 'from_pretrained', 'push_to_hub', 'save_pretrained']
