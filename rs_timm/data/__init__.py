"""From files to tensors."""
from .folder import ImageFiles
from .images import ImageError, image_transform, open_image
from .multires import MultiResLoader, create_multires_loader

__all__ = ['ImageError', 'ImageFiles', 'MultiResLoader', 'create_multires_loader', 'image_transform', 'open_image']
