"""Records that files hold as JSON: every value is checked before it is used, so that a damaged file is an error."""
import json
import os
from dataclasses import asdict
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Dict, Type, TypeVar, Union

from rs_timm.atomic import write_bytes

__all__ = ['LENIENT', 'Checked', 'Record', 'parse_record']

_STRICT: Dict[str, Any] = dict(strict=True, allow_inf_nan=False, extra='forbid')
LENIENT: Dict[str, Any] = {**_STRICT, 'extra': 'ignore'}  # a `__pydantic_config__` that passes over unknown keys
_LARGEST = 2 ** 26  # bytes of a file

T = TypeVar('T')
PathOrStr = Union[str, 'PathLike[str]']


def parse_record(record: Type[T], content: Dict[str, Any], source: str) -> T:
    """Make a dataclass of JSON that was read, and check every value on the way.

    Args:
        record: a dataclass with a `__pydantic_config__`; what its `__post_init__` refuses is refused here.
        content: its entries, as JSON has them.
        source: the file, for errors.

    Raises:
        ValueError: the message names the source, the field and what is wrong with it.
    """
    import pydantic

    try:
        return _adapter(record).validate_json(json.dumps(content))  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        *path, field = ('',) if not first['loc'] else first['loc']
        where = '.'.join(str(part) for part in path)
        if first['type'] == 'missing':
            raise ValueError(f"{source} lacks {field}{f' in {where}' if where else ''}.") from None
        reason = first['msg'].removeprefix('Value error, ').rstrip('.')
        place = '.'.join(filter(None, (where, str(field))))
        raise ValueError(f"{source}: {f'{place}: ' if place else ''}{reason[:1].lower()}{reason[1:]}.") from None


@cache
def _adapter(record: Type[Any]) -> Any:
    import pydantic

    return pydantic.TypeAdapter(record)


class Checked:
    """The base of a dataclass that is read: 1 is no '1' and no True, numbers are finite, unknown keys are refused."""

    __pydantic_config__: ClassVar[Dict[str, Any]] = _STRICT


class Record(Checked):
    """The base of a dataclass that has files of its own, which say their kind and format."""

    _kind: ClassVar[str]
    _remedy: ClassVar[str]  # how to make such a file, for errors
    _format: ClassVar[int] = 1

    def save(self, path: PathOrStr) -> None:
        """Write it as JSON, in one step: a reader sees the old file or the new one."""
        entries: Dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        content = json.dumps(dict(format=self._format, kind=self._kind, **entries), indent=1) + '\n'
        write_bytes(Path(path), content.encode())

    @classmethod
    def load(cls: Type[T], path: PathOrStr) -> T:
        """Read what `save` wrote.

        Raises:
            ValueError: not such a file, one of another format, or values that cannot be; it names file and field.
            OSError: no such file, or one that cannot be read.
        """
        own: Any = cls
        name = os.fspath(path)
        with open(path, 'rb') as stream:
            text = stream.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f'{name} has more than {_LARGEST >> 20} MiB: it is no {own._kind}.')
        try:
            content = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise ValueError(f'{name} is not JSON: {error}.') from None
        if not isinstance(content, dict) or content.pop('kind', None) != own._kind:
            raise ValueError(f'{name} is not a file of the kind {own._kind!r}: {own._remedy}.')
        found = content.pop('format', None)
        if found != own._format or isinstance(found, bool):
            raise ValueError(
                f'{name} has format {found!r}, and this version reads format {own._format}: {own._remedy}.')
        return parse_record(cls, content, name)
