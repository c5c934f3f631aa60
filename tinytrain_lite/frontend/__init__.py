"""Front ends: `torch_export` reads an `nn.Module`, `mcunet` the paper's int8 checkpoints."""
