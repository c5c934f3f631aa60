"""PyTorch side of the house: data sets, the demo network, its pretraining, and the fp32 ceiling."""
