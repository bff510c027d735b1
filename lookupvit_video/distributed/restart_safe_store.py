"""A separate store for the processes of each start under torchrun."""

import secrets
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

from lookupvit_video.errors import RunFailure


def restart_safe_store(store: Store, rank: int, size: int, seconds: float) -> Store:
    """Return a part of a store that only the processes of this start know; all of them must call it.

    torchrun keeps one store over its restarts, and torch looks there for the addresses of the other processes: an early
    process would find the address of another one's dead predecessor. A count of restarts cannot distinguish the starts,
    since each node's torchrun has its own. So each process asks with a random word; rank 0 answers with that word and
    its random name of this start; and a process accepts no other answer.

    Raises:
        RunFailure: some processes did not respond within ``seconds``; names them.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + seconds
    if rank:
        store.set(f"ask/{rank}", own)
        name = ""
        while not name:
            name = _answer_to(store, rank, own)
            if not name and time.monotonic() > deadline:
                raise RunFailure(f"timed out after {seconds:g} s waiting for process 0")
            time.sleep(0.02)
        store.set(f"heard/{rank}", f"{own} {name}")
        return PrefixStore(name, store)
    waiting = set(range(1, size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"ask/{other}"]):
                answer = f"{store.get(f'ask/{other}').decode()} {own}"
                store.set(f"answer/{other}", answer)
                if store.check([f"heard/{other}"]) and store.get(f"heard/{other}").decode() == answer:
                    waiting.discard(other)
        if waiting and time.monotonic() > deadline:
            missing = ", ".join(map(str, sorted(waiting)))
            raise RunFailure(f"timed out after {seconds:g} s waiting for process {missing}")
        time.sleep(0.02)
    return PrefixStore(own, store)


def _answer_to(store: Store, rank: int, word: str) -> str:
    """Return the name of this start, if rank 0 answered to a word; else ""."""
    if not store.check([f"answer/{rank}"]):
        return ""
    answered, name = store.get(f"answer/{rank}").decode().split()
    return name if answered == word else ""
