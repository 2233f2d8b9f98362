"""weights/manifest.json: what the project ships, where it comes from, and its hash."""
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Dict, Optional

__all__ = ['file_sha256', 'manifest', 'manifest_cfgs', 'manifest_entry_of_file', 'weights_dir']


def weights_dir() -> Path:
    """The folder of the shipped weights: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / 'weights'
    return inside if inside.is_dir() else package.parent / 'weights'


@cache
def manifest() -> Dict[str, Dict[str, Any]]:
    """Entries of the manifest: 'model.tag' -> file, sha256, origin, license, resolutions, cfg, top1."""
    return json.loads((weights_dir() / 'manifest.json').read_text(encoding='utf-8'))['weights']


def manifest_cfgs(name: str) -> Dict[str, Dict[str, Any]]:
    """Tag -> keyword arguments of timm's PretrainedCfg, for the shipped weights of the model `name`."""
    cfgs = {}
    for key, entry in manifest().items():
        model, _, tag = key.partition('.')
        if model == name:
            cfgs[tag] = dict(entry['cfg'], file=str(weights_dir() / entry['file']), license=entry['license'],
                             origin_url=entry['origin'])
    return cfgs


def manifest_entry_of_file(path: Path) -> Optional[Dict[str, Any]]:
    """The entry that describes the file at `path`, if the project ships it."""
    path = path.resolve()
    return next((e for e in manifest().values() if (weights_dir() / e['file']).resolve() == path), None)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
