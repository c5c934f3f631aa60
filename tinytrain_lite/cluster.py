"""Where joblib's parallel work runs: on this computer, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import joblib

from tinytrain_lite.errors import UnsupportedError

__all__ = ["dask_cluster"]

PATIENCE = "10s"  # for the scheduler to answer


@contextmanager
def dask_cluster(address: str, shared: Sequence[object] = ()) -> Iterator[None]:
    """Within it, `joblib.Parallel` hands its work to the Dask scheduler at `address` ("tcp://host:8786").

    shared: large arguments of many calls, sent to each worker once. Workers need this package, and see the same
    folders or keep their own caches. Raises UnsupportedError if Dask is not installed or nothing answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UnsupportedError("a Dask cluster needs Dask; `pip install 'tinytrain-lite[dask]'`") from None
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:  # a time-out is an OSError
        raise UnsupportedError(
            f"no Dask scheduler answers at '{address}' ({error}); start one with `dask scheduler`, workers with "
            f"`dask worker {address}`"
        ) from None
    with client, joblib.parallel_config("dask", scatter=list(shared)):
        yield
