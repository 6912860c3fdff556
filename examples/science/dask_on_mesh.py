"""A Dask array and a Dask dataframe computed on the mesh.  Needs: pip install p2pcompute 'dask[array,dataframe]'

Dask takes any executor of `concurrent.futures`; values pass through this program between the steps of its graph.
"""

from __future__ import annotations

import sys

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from p2pcompute import MeshExecutor


def main(size: int) -> None:
    with MeshExecutor() as executor:
        numbers = da.random.default_rng(7).normal(size=(size, size), chunks=size // 4)
        trace, spread = dask.compute(da.diag(numbers @ numbers.T).sum(), numbers.std(), scheduler=executor)
        print(f"sum of squares {trace:.3f}, standard deviation {spread:.4f}")
        table = pd.DataFrame({"kind": np.arange(100_000) % 7, "value": np.arange(100_000.0)})
        means = dd.from_pandas(table, npartitions=8).groupby("kind").value.mean().compute(scheduler=executor)
        print(means.sort_index().to_string())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
