"""What a client is answered in place of a prediction."""


class Refusal(Exception):
    """A request that is not answered: an HTTP status and one line.

    Args:
        path: of the video; empty: the request has none.
        is_closing: what the client still sends is not read; the connection is closed.
    """

    def __init__(self, status: int, line: str, path: str = "", is_closing: bool = False):
        super().__init__(line)
        self.status, self.line, self.path, self.is_closing = status, line, path, is_closing

    def as_dict(self) -> dict[str, str]:
        """Return it ready for JSON, as a failure of ``lookupvit predict``."""
        return {"path": self.path, "error": self.line} if self.path else {"error": self.line}
