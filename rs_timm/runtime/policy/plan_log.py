"""Measurements as lines of a file that only grows: what was measured before a process ended is not measured again."""
import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, Dict, List, Mapping, Optional, Tuple, Union

from rs_timm.format.records import Checked, parse_record

__all__ = ['MeasuredLog', 'Visit']

_KIND = 'rs_timm plan measurements'
FORMAT = 1
BROKEN = -1  # the answer to a picture that could not be read


@dataclass(frozen=True)
class Visit(Checked):
    """Some pictures in a row that a network was called with.

    Args:
        network: its key.
        start: the position of the first picture.
        answers: class of each, or `BROKEN`.
        margins: of each picture that could be read, the largest output less the second largest.
        nanoseconds: of the call with each of them.
        whole: nanoseconds of all that it took, reading and calls that do not count included.
    """

    network: str
    start: int
    answers: Tuple[int, ...]
    margins: Tuple[float, ...]
    nanoseconds: Tuple[int, ...]
    whole: int

    def __post_init__(self) -> None:
        readable = sum(answer != BROKEN for answer in self.answers)
        if self.start < 0 or not self.answers or min(self.answers) < BROKEN or (
                {readable} != {len(self.nanoseconds), len(self.margins)}
                or min((*self.nanoseconds, *self.margins), default=0) < 0 or self.whole < sum(self.nanoseconds)):
            raise ValueError(f'{len(self.answers)} answers from picture {self.start}, {len(self.margins)} margins, '
                             f'{len(self.nanoseconds)} times, {self.whole} in all: classes, and a margin and a time '
                             'for each picture that was read')


class MeasuredLog:
    """The visits of a measurement, and the file that keeps them.

    Args:
        path: of the file, which is made or appended to; None: they are kept in memory alone.
        settings: what all visits depend on, as JSON has it.

    Raises:
        ValueError: the file is of other settings, which are named, or is no such file, or damaged; it names the line.
    """

    def __init__(self, path: Union[None, str, 'PathLike[str]'], settings: Mapping[str, Any]) -> None:
        self.visits: Dict[str, Dict[int, Visit]] = {}
        self._stream: Optional[IO[str]] = None
        if path is None:
            return
        heading = json.dumps(dict(format=FORMAT, kind=_KIND, **settings))
        whole = _whole_lines(Path(path))
        if whole:
            self._check(str(path), whole[0], json.loads(heading))
        for number, line in enumerate(whole[1:], 2):
            self._keep(parse_record(Visit, _parsed(line, f'{path}, line {number}'), f'{path}, line {number}'))
        self._stream = Path(path).open('a', encoding='utf-8')  # noqa: SIM115 (`close` closes it)
        if not whole:
            self._write(heading)

    def add(self, visit: Visit) -> None:
        self._keep(visit)
        self._write(json.dumps(asdict(visit), separators=(',', ':')))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _keep(self, visit: Visit) -> None:
        self.visits.setdefault(visit.network, {})[visit.start] = visit

    def _write(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line + '\n')
            self._stream.flush()

    def _check(self, name: str, line: str, expected: Mapping[str, Any]) -> None:
        found = _parsed(line, f'{name}, line 1')
        if found.get('kind') != _KIND:
            raise ValueError(f'{name} has other content than measurements for a plan: name another --out.')
        differing = [key for key in expected if found.get(key) != expected[key]]
        if differing:
            shown = '; '.join(f'{key} {found.get(key)!r:.60}, here {expected[key]!r:.60}' for key in differing)
            raise ValueError(f'{name} was measured with other settings ({shown}): --again measures anew, or name '
                             'another --out.')


def _whole_lines(path: Path) -> List[str]:
    """The lines of a file; one without an end, which a process was killed in, is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b'\n') + 1
    if end < len(content):
        with path.open('r+b') as stream:
            stream.truncate(end)
    return content[:end].decode('utf-8', 'backslashreplace').splitlines()


def _parsed(line: str, source: str) -> Dict[str, Any]:
    try:
        content = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise ValueError(f'{source} is not JSON ({error}): --again measures anew.') from None
    if not isinstance(content, dict):
        raise ValueError(f'{source} is no JSON object: --again measures anew.')
    return content
