"""What older versions of timm, which are supported, lack."""
import timm

OLD_TIMM = not hasattr(timm.models, '_input')  # before 1.0.31, which records the arguments of constructors
