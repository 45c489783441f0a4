"""The file in which a process of torchrun says why it fails.

torchrun reads it as soon as any process has failed, while others may still be writing theirs, and half a file ends
torchrun itself instead of a restart. So a file appears when it is complete.
"""

import os

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

PLACE = "TORCHELASTIC_ERROR_FILE"


class CompleteErrorFile(ErrorHandler):
    """Writes the file beside its place first, and moves it there."""

    def record_exception(self, e: BaseException) -> None:
        place = os.environ.get(PLACE)
        if place is None:
            return super().record_exception(e)
        os.environ[PLACE] = f"{place}.part"
        try:
            super().record_exception(e)
            os.replace(f"{place}.part", place)
        finally:
            os.environ[PLACE] = place
