"""Annotations in the XML of Pascal VOC, which ImageNet VID and DET use too.

Values are found by the name of their element, never by position: ImageNet writes a box as xmax,
xmin, ymax, ymin, Pascal in other orders. The files are untrusted: their size is bounded and a
document type is refused, so that no entity is ever expanded.
"""

import dataclasses
import pathlib
from xml.etree import ElementTree

from memvid_tf.data.records import DatasetError, MissingFileError

# A frame of sixty objects takes 20 kB.
MAX_BYTES = 4 << 20
MAX_VALUE = 1e9
MAX_NAME = 100
CORNERS = ("ymin", "xmin", "ymax", "xmax")


@dataclasses.dataclass(frozen=True)
class XmlObject:
    """One object: class name, `[ymin, xmin, ymax, xmax]` in pixels, track or None, Pascal's
    `difficult`."""

    name: str
    box: tuple[float, float, float, float]
    track: int | None
    difficult: bool


@dataclasses.dataclass(frozen=True)
class XmlAnnotation:
    """One picture: (height, width) as annotated, None where that is not said or 0 x 0, as some
    tools write what they do not know; and its objects in order."""

    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name, pubid, system):
        raise ValueError(f"it declares a document type, {name}, which annotations never do")


def read(path: pathlib.Path) -> XmlAnnotation:
    """Reads an annotation.

    Raises:
      DatasetError: naming the file and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
        return XmlAnnotation(_size(root), tuple(_object(e) for e in root.iterfind("object")))
    except FileNotFoundError as error:
        raise MissingFileError(f"annotation {path} is missing") from error
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"annotation {path} cannot be used: {error}") from error


def _size(root):
    size = root.find("size")
    if size is None:
        return None
    height, width = int(_number(size, "height")), int(_number(size, "width"))
    return (height, width) if height or width else None


def _object(element):
    box = element.find("bndbox")
    if box is None:
        raise ValueError("an object has no bndbox")
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    if len(name) > MAX_NAME:
        raise ValueError(f"an object's name has {len(name)} letters, allowed are {MAX_NAME}")
    track = None if element.find("trackid") is None else int(_number(element, "trackid"))
    return XmlObject(
        name=name,
        box=tuple(_number(box, corner) for corner in CORNERS),
        track=track,
        difficult=(element.findtext("difficult") or "0").strip() == "1",
    )


def _number(element, name):
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"{element.tag} has no {name}")
    value = float(text)
    if not abs(value) <= MAX_VALUE:  # Nor nan.
        raise ValueError(f"{name} is {text}")
    return value
