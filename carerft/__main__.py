import sys

from carerft.cli import main

sys.exit(main())
