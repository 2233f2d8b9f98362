"""The Python of README.md and docs/ runs as it stands, but for what says that it needs something else."""
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from rs_timm import runtime
from rs_timm.runtime.policy import budget

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
SNIPPETS = [(page.name, snippet) for page in PAGES
            for snippet in re.findall(r'```python\n(.*?)```', page.read_text(encoding='utf-8'), flags=re.DOTALL)]


@pytest.mark.parametrize('page, snippet', SNIPPETS, ids=[f'{page}-{i}' for i, (page, _) in enumerate(SNIPPETS)])
def test_snippet_runs(page, snippet, tmp_path, monkeypatch):
    if needs := re.search(r'^# (needs .*)', snippet, flags=re.MULTILINE):
        pytest.skip(f'says that it {needs[1]}')
    monkeypatch.chdir(tmp_path)
    few_calls = partial(runtime.measure_latency, seconds=0.)
    for place in (runtime, budget):
        monkeypatch.setattr(place, 'measure_latency', few_calls)
    code = snippet.replace('pretrained=True', 'pretrained=False').replace('rs_resnet50', 'rs_mobilenetv2')
    names = {f'x{r}': torch.randn(2, 3, r, r) for r in (224, 192, 160, 128, 96)}
    exec(compile(code, page, 'exec'), names)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text(encoding='utf-8')):
        assert target.startswith('https://') or (page.parent / target).exists(), f'{page.name}: {target}'
