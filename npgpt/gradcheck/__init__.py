"""The gradient checker: compares any backward with the derivative of its forward."""

from npgpt.gradcheck.check import check_gradients
from npgpt.gradcheck.report import GradientError, Report

__all__ = ["GradientError", "Report", "check_gradients"]
