"""Inputs of a network's layers, and derivatives of a loss with respect to their outputs.

For a dense layer the gradient of a loss over N samples is H^T Delta (H: (N, in), inputs; Delta:
(N, out), derivatives with respect to the outputs). The inner product of two such gradients is
<H^T Delta, K^T E> = <H K^T, Delta E^T>, which is cheap if one of the batches is small. A bias is
the weight of a constant input of 1.
"""
