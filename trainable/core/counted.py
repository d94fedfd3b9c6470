"""Numbers with their noun, for messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if it is not 1: "1 case", "3 cases", "0 cases"."""
    return f"{number} {noun}{'s' * (number != 1)}"
