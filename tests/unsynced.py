"""Takes waiting for the disk out of a process that imports this: tests kill processes, never the power."""

import os

os.fsync = lambda handle: None
