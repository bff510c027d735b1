"""Where videos are received: files without a name, which the system removes with this process, however it ends."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

_OPEN_FILES = Path(f"/proc/{os.getpid()}/fd")
HAS_UNNAMED = _OPEN_FILES.is_dir()  # Linux: other processes of this user can open them


def _new_file() -> IO[bytes]:
    return tempfile.TemporaryFile() if HAS_UNNAMED else tempfile.NamedTemporaryFile()


class Inbox:
    """An open file that grows up to a limit.

    Args:
        most: bytes.
    """

    def __init__(self, most: int):
        self.most, self.size = most, 0
        self.file = _new_file()

    @classmethod
    def of_spooled(cls, file: Any, most: int) -> "Inbox":
        """Take over a spooled file, such as a form's."""
        inbox = cls.__new__(cls)
        inbox.most, inbox.file = most, file
        if HAS_UNNAMED:
            file.rollover()
        else:
            inbox.file = _new_file()
            file.seek(0)
            shutil.copyfileobj(file, inbox.file)
            file.close()
        inbox.size = inbox.file.seek(0, os.SEEK_END)
        return inbox

    def write(self, chunk: bytes) -> bool:
        """Append; return whether it is still within the limit. What is not is dropped."""
        self.size += len(chunk)
        if self.size > self.most:
            return False
        self.file.write(chunk)
        return True

    @property
    def path(self) -> str:
        """A name by which a worker can open the file until it is closed."""
        self.file.flush()
        return str(_OPEN_FILES / str(self.file.fileno())) if HAS_UNNAMED else self.file.name

    def close(self) -> None:
        """Remove the file; closing twice is harmless."""
        self.file.close()
