"""Reads numbers that a config has as text."""


def numbers(key: str, text: str, expected: str, example: str) -> tuple[float, ...]:
    """The numbers of a text such as `0.5,0.25`.

    Raises:
        ValueError: the text is not a list of numbers. The error names `key`, what was expected, and an example.
    """
    try:
        if not text.isascii():
            raise ValueError
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{key} is {text!r}: use {expected}, separated by commas, such as {example}") from None
