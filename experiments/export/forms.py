"""The forms in which a network is written, each with its file or folder."""

from kd_local.errors import unknown

FORMS = {"orbax": "orbax", "safetensors": "network.safetensors", "torch": "network.pth"}
CARD = "README.md"


def read_forms(text: str) -> tuple[str, ...]:
    """The distinct forms in a text such as `orbax,torch`, in its order.

    Raises:
        ValueError: a form is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMS:
            raise unknown("form", name, FORMS)
    return names
