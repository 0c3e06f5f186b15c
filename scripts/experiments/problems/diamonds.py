"""Prices of diamonds from their measures."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import mse_loss

from .packages import package_folder
from .problem import EVALUATION, TRAIN, Problem, Tensors

PLOTNINE = "plotnine==0.15.9"
"""A plotting package that ships the table of 53,940 diamonds."""


def load_diamonds(folder: Path) -> tuple[pd.DataFrame, pd.Series]:
    """Standardised features, and the standardised logarithm of the price.

    Raises:
        ValueError: if the package is missing.
    """
    table = pd.read_csv(package_folder(PLOTNINE, folder) / "data" / "diamonds.csv")
    features = pd.get_dummies(table.drop(columns="price"), dtype=float)
    prices = np.log(table["price"])
    return (features - features.mean()) / features.std(), (prices - prices.mean()) / prices.std()


class RegressionMLP(torch.nn.Module):
    """A network with two hidden layers and one output."""

    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_features, hidden),
            torch.nn.GELU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.GELU(),
            torch.nn.Linear(hidden, 1),
        )

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean squared error."""
        return {"loss": mse_loss(self.layers(features).squeeze(1), labels)}


class DiamondPrices(Problem):
    """Predict the logarithm of the price. The loss is the unexplained fraction of its variance."""

    requirements = (PLOTNINE,)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Split the table at random."""
        features, prices = load_diamonds(folder)
        columns = {
            "features": torch.tensor(features.to_numpy(), dtype=torch.float32),
            "labels": torch.tensor(prices.to_numpy(), dtype=torch.float32),
        }
        order = np.random.default_rng(1).permutation(len(prices))
        parts = {EVALUATION: order[: self.num_evaluation], TRAIN: order[self.num_evaluation :]}
        return {name: {key: column[rows] for key, column in columns.items()} for name, rows in parts.items()}

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make the network."""
        return RegressionMLP(num_features=26, hidden=128)
