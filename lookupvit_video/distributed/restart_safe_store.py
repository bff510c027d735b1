"""A store of their own for the processes of each start under torchrun."""

import secrets
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

from lookupvit_video.errors import RunFailure


def restart_safe_store(store: Store, rank: int, size: int, seconds: float) -> Store:
    """Return a part of a store that only the processes of this start know; all of them must call it.

    torchrun keeps one store over its restarts, and torch looks there for the addresses of the other processes: a
    process that is quicker than another would find the address of its dead predecessor. A count of restarts cannot
    tell the starts apart, since each node's torchrun has its own. So each process asks with a word that it draws,
    rank 0 answers with that word and the name that it drew for this start, and a process believes no other answer.

    Raises:
        RunFailure: some processes did not come within some seconds; names them.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + seconds
    if rank:
        store.set(f"ask/{rank}", own)
        name = ""
        while not name:
            name = _answer_to(store, rank, own)
            if not name and time.monotonic() > deadline:
                raise RunFailure(f"waited {seconds:g} s in vain for process 0")
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
            raise RunFailure(f"waited {seconds:g} s in vain for process {missing}")
        time.sleep(0.02)
    return PrefixStore(own, store)


def _answer_to(store: Store, rank: int, word: str) -> str:
    """Return the name of this start, if rank 0 answered to a word; else nothing."""
    if not store.check([f"answer/{rank}"]):
        return ""
    answered, name = store.get(f"answer/{rank}").decode().split()
    return name if answered == word else ""
