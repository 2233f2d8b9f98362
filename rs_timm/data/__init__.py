"""From files to tensors."""
from .images import ImageError, image_transform, open_image

__all__ = ['ImageError', 'image_transform', 'open_image']
