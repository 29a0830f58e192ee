"""What was tried, how often, and how often something was wrong."""

import sys


class Table:
    """Counts tries and failures, and shows at once what fails."""

    def __init__(self):
        self.rows = {}

    def record(self, what, found, where):
        """found: list of texts, empty if nothing is wrong."""
        tries, failures = self.rows.get(what, (0, 0))
        self.rows[what] = tries + 1, failures + bool(found)
        if found:
            print(f"{what}, {where}: {'; '.join(found)}", file=sys.stderr)

    def show(self):
        print("| what | tries | failures |\n| --- | ---: | ---: |")
        for what, (tries, failures) in self.rows.items():
            print(f"| {what} | {tries:,} | {failures:,} |")
        return sum(failures for _, failures in self.rows.values())
