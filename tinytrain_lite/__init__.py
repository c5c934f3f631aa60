"""TinyTrain Lite: train neural networks on a microcontroller in under 256 KB of SRAM."""

__version__ = "0.1.0"
