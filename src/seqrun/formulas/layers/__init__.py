"""A network's layers: their inputs, and the derivatives of a loss with respect to their outputs.

For a dense layer the gradient of a loss over N samples is H^T Delta (H: (N, in), inputs; Delta:
(N, out), derivatives with respect to the outputs). So two gradients have the inner product
<H^T Delta, K^T E> = <H K^T, Delta E^T>, which is cheap if one of them is of few samples.
A bias is the weight of an input that is 1.
"""
