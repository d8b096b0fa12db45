"""Other libraries for these brokers, each used as its documentation shows.

``make bench`` installs them into a separate folder, so that they do not replace packages of the environment. The rows of a
library that is not installed contain this reason.
"""

import site
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "peers"

if FOLDER.is_dir():
    site.addsitedir(str(FOLDER))  # after the packages of the environment
