"""Layers of a network as objects that remember in `forward` what `backward` needs."""

from fastrelu.nn.activations import ELU, LeakyReLU, PReLU, ReLU, Sigmoid, Softplus, Tanh

__all__ = ["ELU", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softplus", "Tanh"]
