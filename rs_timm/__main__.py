"""`python -m rs_timm` is `rs-timm`."""
import sys

from rs_timm.cli import main

if __name__ == '__main__':
    sys.exit(main())
