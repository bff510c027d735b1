"""A server that answers videos over HTTP; needs the extra ``serve``."""
