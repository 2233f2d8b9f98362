"""From files to tensors."""
from rs_timm.pictures import ImageError, open_image

from .class_folders import folder_classes, open_split
from .folder import ImageFiles
from .images import image_transform
from .mask_loader import create_mask_loader
from .masks import MaskFolder
from .multires import MultiResLoader, create_multires_loader
from .readers import ReaderPictures

__all__ = [
    'ImageError',
    'ImageFiles',
    'MaskFolder',
    'MultiResLoader',
    'ReaderPictures',
    'create_mask_loader',
    'create_multires_loader',
    'folder_classes',
    'image_transform',
    'open_image',
    'open_split',
]
