"""The gradient checker, a library of its own: is a backward the derivative of its forward?"""

from npgpt.gradcheck.check import GradientError, Report, check_gradients

__all__ = ["GradientError", "Report", "check_gradients"]
