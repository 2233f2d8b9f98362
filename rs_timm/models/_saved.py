"""What config.json of a saved network says beyond what timm reads of it."""
import json
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from huggingface_hub import try_to_load_from_cache

__all__ = ['saved_metadata']

_CONFIG = 'config.json'


def saved_metadata(cfg: Mapping[str, Any], cache_dir: Optional[str] = None) -> Dict[str, Any]:
    """The entry 'rs_timm' of the config.json that `cfg` came from, a folder's or the hub's; empty if there is none.

    Nothing is downloaded: timm has just read the file.
    """
    path = _config_of(cfg, cache_dir)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8')).get('rs_timm', {})
    except (OSError, ValueError, AttributeError):  # timm has read it, or says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _config_of(cfg: Mapping[str, Any], cache_dir: Optional[str]) -> Optional[Path]:
    if cfg.get('source') == 'local-dir' and cfg.get('file'):
        path = Path(cfg['file'])  # timm has the folder here
        return path / _CONFIG if path.is_dir() else path.with_name(_CONFIG)
    if cfg.get('source') == 'hf-hub' and cfg.get('hf_hub_id'):
        repo_id, _, revision = cfg['hf_hub_id'].partition('@')
        cached = try_to_load_from_cache(repo_id, _CONFIG, cache_dir=cache_dir, revision=revision or None)
        return Path(cached) if isinstance(cached, str) else None
    return None
