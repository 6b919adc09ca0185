"""Projection of a gradient that would increase another loss (Chaudhry et al. 2019, A-GEM).

g <- g - (g.r / r.r) r if g.r < 0, where r is the gradient of the other loss; if g.r >= 0 or r = 0,
g stays the same to the bit. Each gradient is one vector over all parameters.
"""
