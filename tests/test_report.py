"""The generated parts of README.md, MODEL_CARD.md and docs/*.md are what the generator writes now."""
from functools import cache

import pytest

from benchmarks import environment, report


@pytest.fixture(scope='module', autouse=True)
def each_section_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'SECTIONS', {name: cache(write) for name, write in report.SECTIONS.items()})
        yield


@pytest.mark.parametrize('document', report.DOCUMENTS)
def test_documents_have_not_drifted(document):
    text = (report.ROOT / document).read_text(encoding='utf-8')
    assert report.render(text) == text, 'run python -m benchmarks.report'


def test_a_changed_figure_is_noticed():
    text = (report.ROOT / 'README.md').read_text(encoding='utf-8')
    drifted = text.replace('4089.2', '4089.3')
    assert drifted != text and report.render(drifted) == text


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match="'nothing' is unknown.*cost"):
        report.render('<!-- report:nothing --> <!-- /report:nothing -->')


def test_what_was_not_measured_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    for name, write in report.SECTIONS.items():
        assert name in ('cost', 'weights') or 'not measured' in write.__wrapped__(), name
