"""What goes into a network's layers, and the derivatives of a loss by what comes out of them.

For a dense layer the gradient of a loss over N samples is H^T Delta (H: (N, in), inputs; Delta:
(N, out), derivatives by the outputs). So two gradients have the inner product
<H^T Delta, K^T E> = <H K^T, Delta E^T>, which costs little where one of them is of few samples.
A bias is the weight of an input that is 1.
"""
