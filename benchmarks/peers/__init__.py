"""What users of these brokers have today, in its own idiom.

``make bench`` installs what the project itself does not need into a folder of its own beside the environment's packages, so
that nothing of theirs replaces anything of ours. A peer that is not installed has rows that say so.
"""

import site
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "peers"

if FOLDER.is_dir():
    site.addsitedir(str(FOLDER))  # behind the environment's own
