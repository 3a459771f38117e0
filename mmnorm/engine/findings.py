"""What a check of a data set finds: kinds of faults, with how often and where."""

from dataclasses import asdict, dataclass, field

ERROR, WARNING = 'error', 'warning'
EXAMPLES = 3


@dataclass
class Finding:
    """One kind of fault in one file.

    Attributes:
        severity: :data:`ERROR` (a run fails by it, or trains or evaluates something else than is meant) or
            :data:`WARNING`.
        what: What is wrong, and what follows where that is not plain.
        count: How many there are.
        examples: Where, of the first few.
        concerns: Whom it concerns: everyone, or those alone who load 'masks', read 'labels', or evaluate ('metric').
    """

    severity: str
    what: str
    count: int = 1
    examples: list = field(default_factory=list)
    concerns: str = 'everyone'

    def __str__(self):
        if not self.examples:
            return self.what
        more = ', ...' * (self.count > len(self.examples))
        return f'{self.what}: {self.count:,} ({", ".join(self.examples)}{more})'


class Findings(list):
    """A list of :class:`Finding`, added to by kind."""

    def tell(self, severity, what, concerns='everyone'):
        """Add what a file as a whole has."""
        self.append(Finding(severity, what, concerns=concerns))

    def add(self, severity, what, places, describe=str, concerns='everyone'):
        """Add what entries of a file have, unless there are none.

        Args:
            severity (str): :data:`ERROR` or :data:`WARNING`.
            what (str): As in :class:`Finding`.
            places (sequence): Where it occurs.
            describe (callable): Turns a place into text.
            concerns (str): As in :class:`Finding`.
        """
        if len(places):
            examples = [str(describe(place)) for place in places[:EXAMPLES]]
            self.append(Finding(severity, what, len(places), examples, concerns))

    def plain(self):
        """As plain values, for JSON."""
        return [asdict(finding) for finding in self]
