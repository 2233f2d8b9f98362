"""From files to tensors."""
from rs_timm.pictures import ImageError, open_image

from .folder import ImageFiles
from .images import image_transform
from .multires import MultiResLoader, create_multires_loader

__all__ = ['ImageError', 'ImageFiles', 'MultiResLoader', 'create_multires_loader', 'image_transform', 'open_image']
