"""From files to tensors."""
from .images import ImageError, image_transform, open_image
from .multires import MultiResLoader, create_multires_loader

__all__ = ['ImageError', 'MultiResLoader', 'create_multires_loader', 'image_transform', 'open_image']
