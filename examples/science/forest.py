# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.4,<2"]
# ///
"""A random forest for each number of trees, each scored by cross validation: packages travel with the job.

    p2pc run -k --range 1..8 forest.py::score

No node needs scikit-learn, nor does the computer that asks: each makes an environment from the list above, once.
"""

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

DATA, DIGITS = load_digits(return_X_y=True)


def score(trees: str) -> str:
    """Return the share of digits that a forest of so many trees reads right."""
    forest = RandomForestClassifier(n_estimators=int(trees), random_state=0)
    found = cross_val_score(forest, DATA[:600], DIGITS[:600], cv=3).mean()
    return f"{trees} trees: {found:.3f}"
