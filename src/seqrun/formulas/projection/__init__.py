"""Projection of a gradient to where it does not raise another loss (Chaudhry et al. 2019, A-GEM).

g <- g - (g.r / r.r) r if g.r < 0, with r the gradient of the other loss; otherwise g to the bit,
and also where r = 0. All parameters are one vector.
"""
