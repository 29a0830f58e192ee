"""The gradient checker: compares any backward with the derivative of its forward."""

from npgpt.gradcheck.check import GradientError, Report, check_gradients

__all__ = ["GradientError", "Report", "check_gradients"]
