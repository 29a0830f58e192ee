"""PyTorch's random stream, bit for bit, so that the lecture's numbers come out the same."""
