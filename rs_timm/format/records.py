"""Records that files hold as JSON: every value is checked before it is used, so that a damaged file is an error."""
import json
import os
from dataclasses import asdict
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Dict, Type, TypeVar, Union

from rs_timm.atomic import write_bytes

__all__ = ['CHECKED', 'LENIENT', 'parse_record', 'read_record', 'write_record']

# the `__pydantic_config__` of a dataclass: 1 is no '1' and no True, numbers are finite; unknown keys are refused or not
CHECKED: Dict[str, Any] = dict(strict=True, allow_inf_nan=False, extra='forbid')
LENIENT: Dict[str, Any] = {**CHECKED, 'extra': 'ignore'}
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


def read_record(record: Type[T], path: PathOrStr, kind: str, format: int, remedy: str) -> T:
    """Read what `write_record` wrote.

    Args:
        record: as for `parse_record`.
        path: the file.
        kind, format: as it was written.
        remedy: how to make such a file, for errors.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: not such a file, one of another format, or a damaged one; the message names file and field.
    """
    name = os.fspath(path)
    with open(path, 'rb') as stream:
        text = stream.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f'{name} has more than {_LARGEST >> 20} MiB: it is no {kind}.')
    try:
        content = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f'{name} is not JSON: {error}.') from None
    if not isinstance(content, dict) or content.pop('kind', None) != kind:
        raise ValueError(f'{name} is not a file of the kind {kind!r}: {remedy}.')
    found = content.pop('format', None)
    if found != format or isinstance(found, bool):
        raise ValueError(f'{name} has format {found!r}, and this version reads format {format}: {remedy}.')
    return parse_record(record, content, name)


def write_record(record: Any, path: PathOrStr, kind: str, format: int) -> None:
    """Write a dataclass as JSON, as a whole or not at all."""
    content = json.dumps(dict(format=format, kind=kind, **asdict(record)), indent=1) + '\n'
    write_bytes(Path(path), content.encode())
