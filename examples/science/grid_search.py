"""scikit-learn's grid search on the mesh, by joblib's backend.  Needs: pip install joblib scikit-learn"""

from __future__ import annotations

import sys
import time

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import p2pcompute.joblib  # noqa: F401 - makes the backend "p2pc" known to joblib


def main(folds: int) -> None:
    data, digits = load_digits(return_X_y=True)
    grid = {"C": [0.1, 1, 10], "gamma": [1e-4, 1e-3, 1e-2]}
    started = time.monotonic()
    with joblib.parallel_config("p2pc"):
        found = GridSearchCV(SVC(), grid, cv=folds, n_jobs=-1).fit(data, digits)
    print(f"best of {len(grid['C']) * len(grid['gamma'])}: {found.best_params_}, accuracy {found.best_score_:.4f}")
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
