"""Affine sets as the official affNIST has them: reading, writing, pairing with MNIST, verifying."""

from affbench.data.affnist.read import read_homnist, read_mat
from affbench.data.affnist.write import export_mat

__all__ = ["export_mat", "read_homnist", "read_mat"]
