"""Pictures from files to tensors, at several sizes at once."""
from rs_timm.pictures import ImageError, open_image

from .folders import ImageFiles, folder_classes, open_split
from .loader import MultiResLoader
from .masks import MaskFolder
from .multires import create_mask_loader, create_multires_loader
from .readers import ReaderPictures
from .views import data_config, image_transform

__all__ = [
    'ImageError',
    'ImageFiles',
    'MaskFolder',
    'MultiResLoader',
    'ReaderPictures',
    'create_mask_loader',
    'create_multires_loader',
    'data_config',
    'folder_classes',
    'image_transform',
    'open_image',
    'open_split',
]
