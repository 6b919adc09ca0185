"""Sums over samples of powers of per-sample gradients, without storing the gradients.

For a dense layer the gradient of sample n is h_n delta_n^T (h: input, delta: derivative of the
loss with respect to the output). Hence sum_n |h_n delta_n^T|^p = (|H|^p)^T |Delta|^p: one product
of two matrices instead of N gradients. A convolution's gradients are computed for a few samples at
a time, from patches of its input. Networks with other layers use vmap, in blocks of 32 samples; on
a CPU, JAX loops over single samples instead unless there are convolutions.
"""
