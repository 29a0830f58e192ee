"""What a check found: a report, or the error that it raises."""

from dataclasses import dataclass, field


class GradientError(AssertionError):
    """A backward pass is not the derivative of its forward pass."""


@dataclass
class Report:
    """What was checked, the largest differences found, and what was left out."""

    examples: int = 1        # number of points checked
    directions: int = 0      # directions of each array
    errors: dict = field(default_factory=dict)    # argument -> method -> largest relative error
    notes: list = field(default_factory=list)     # sentences: what was left out, and why

    @property
    def error(self):
        """The largest relative error of all."""
        return max(self.of_method.values(), default=0.0)

    @property
    def of_method(self):
        """method -> its largest relative error."""
        largest = {}
        for errors in self.errors.values():
            for method, error in errors.items():
                largest[method] = max(error, largest.get(method, 0.0))
        return largest

    def __add__(self, other):
        """Combine two reports."""
        total = Report(self.examples + other.examples, self.directions + other.directions)
        for report in (self, other):
            for name, errors in report.errors.items():
                for method, error in errors.items():
                    total.record(name, method, error)
            for sentence in report.notes:
                total.note(sentence)
        return total

    def record(self, name, method, error):
        """Keep an error if it is the largest of its argument and method."""
        errors = self.errors.setdefault(name, {})
        errors[method] = max(error, errors.get(method, 0.0))

    def note(self, sentence):
        """Keep a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
