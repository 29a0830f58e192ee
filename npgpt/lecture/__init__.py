"""PyTorch's random stream, bit for bit, to reproduce the lecture's numbers."""
