"""The commands: parse, call, print. Heavy imports (torch, numpy, ...) follow the parsing, so that help is fast."""
