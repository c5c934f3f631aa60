"""Graph -> Graph functions, one a file. Each returns a new, verified graph; print before and after to see its work.

sparse    constants that the update scheme trains become parameters; weights are split by input channel
prune     ops whose results nobody reads disappear
fuse      masks, sums, multiplications and updates move into the op that computes the gradient
schedule  updates move right behind their gradients; the order that lowers the peak wins
patch     the frozen, high-resolution front is computed by bands of rows
limits    mantissa ranges that prove every int32 accumulator safe
"""
